"""A record from its URLs, block by block: fetcher, its downloads, and the requests that they make."""
