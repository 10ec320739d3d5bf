"""`cachefs torrent-cat`: what a .torrent says, as TOML."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cachefs import metainfo
from cachefs.cli.terminal import echo
from cachefs.errors import MetainfoError
from cachefs.metainfo import Metainfo

TORRENT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("torrent-cat")
@click.argument("torrents", metavar="FILE...", nargs=-1, required=True, type=TORRENT)
def torrent_cat(torrents: tuple[Path, ...]) -> None:
    """Print what each .torrent FILE says: info-hash, name, length in bytes, pieces, trackers and web seeds."""
    for path in torrents:
        info = load(path)
        echo(f"InfoHash = '{info.content.hex}'")
        echo(f"Name = {json.dumps(info.name, ensure_ascii=False)}")
        echo(f"Length = {info.manifest.length}")
        echo(f"PieceLength = {info.manifest.block_length}")
        echo(f"Pieces = {info.manifest.blocks}")
        echo(f"AnnounceList = {json.dumps(metainfo.trackers(info))}")
        echo(f"UrlList = {json.dumps(info.web_seeds)}")
        if path != torrents[-1]:
            echo()


def load(path: Path) -> Metainfo:
    """The .torrent at `path`; MetainfoError says which file it is about."""
    try:
        return metainfo.load(path)
    except OSError as error:
        raise MetainfoError(f"{path}: can't be read: {error.strerror}") from error
    except MetainfoError as error:
        raise MetainfoError(f"{path}: {error}") from None
