"""Bytes to bytes, one file a step.

request → route → codecs → measure → validate → batch → predict → split → codecs; engine runs them
in order.
"""
