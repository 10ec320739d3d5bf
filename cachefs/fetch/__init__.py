"""Bytes in flight: where content and its metadata are fetched from, and how. From the top down:

routing      one fetcher made of all: by torrent or from the web, by the rules of policy
metadata     sizes and hashes: .torrent files from peers and web seeds, or made of the bytes
torrent      a file from its peers, by libtorrent
remote       a file from web seeds and rclone remotes, by ranges
ranges       a record from its URLs, by ranges
whole        a record as a whole, by any way that a URL may name
rclone       the rclone process that stands between, where one has to
http         asking and receiving
policy       who is asked, and when twice
health       how a source does; outage: when none does anything; sources: what each gave
base         what a fetcher is, and what it is asked by and lands blocks with
"""
