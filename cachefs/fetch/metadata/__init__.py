"""Sizes and hashes of the catalogue: its .torrent files.

service      all names, in the background, a looked-up one first
search       one name: who may have it, in which order; web: one web seed; rebuild: remotes, and from a whole file
"""
