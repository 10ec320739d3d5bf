"""A file from web seeds and the operator's rclone remotes.

fetcher      all downloads, and the sources that they share
download     one file: which blocks to ask of whom; run: one request; judge: what a failure says of its source
remotes      the sources; direct: a web seed, asked without rclone
"""
