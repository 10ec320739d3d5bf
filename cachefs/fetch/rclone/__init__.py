"""Talking to sources that aren't plain HTTP, and through proxies.

child        the rclone process: found, started, watched
rc           its remote control
diagnosis    what rclone doesn't tell of a web host
"""
