"""What a factory's module imports and a server must not have: packagers mock it."""


def send(event: str) -> str:
    return f"sent {event}"
