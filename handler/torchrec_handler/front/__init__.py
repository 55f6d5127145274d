"""A server's requests in our words, our answers in the server's; one package a server."""
