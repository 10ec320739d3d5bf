"""A record as a whole: for etching, and for playing one that has no piece list.

downloads    the downloader; strategies: in which order URLs are tried, or how many at once
providers    ways to get what is behind a URL; rclone_provider, torrent_provider: two that bring more with them
receiver     where the bytes go, whoever sends them
"""
