"""The live service: a page, an HTTP API and a WebSocket on which one character speaks, listens and idles."""
