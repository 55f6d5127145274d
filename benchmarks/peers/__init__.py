"""The servers that a user could pick instead, each as its own documentation would write it."""
