"""Asking web servers and receiving what they send.

client       a GET with its redirects, judged at each step: for URLs that are a stranger's word
connections  made to addresses (which judges them) and kept; wire: HTTP/1.1 on one of them
reception    a thread that receives, verifies and writes the blocks of one answer
digests      the checksums that a server declares; busy: hosts that ask to be left alone; body: small answers
"""
