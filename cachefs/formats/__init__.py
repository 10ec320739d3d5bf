"""Other people's lists of files, read and written: text in, plain values out, no I/O and no catalogue.

listing    one listed file, whatever list it comes from; which format a list is in
sums       SHA256SUMS and MD5SUMS, as coreutils write and check them
pooch      pooch's registry
columns    (name, url, md5) as CSV, TSV or JSON, the older record lists
metalink   Metalink 4
playlists  m3u, m3u8 and pls
"""
