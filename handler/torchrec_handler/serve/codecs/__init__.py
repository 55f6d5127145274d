"""The formats of requests and answers, one module each, chosen by content type or by the bytes."""
