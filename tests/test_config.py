"""Settings: what is given is used, and what is wrong is refused with its place and what was expected."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config import Config, Limits, Peer, Version, load_config, load_webseed_toml, web_seed
from cachefs.config.sections import CatalogueLimits
from cachefs.errors import ConfigError

WHOLE = """
[mount]
mountpoint = "/mnt/cachefs"
data_dir = "data"
allow_other = true

[snapshots]
chain_toml = "lists/mainnet.toml"
versions = "all"
minimum_version = "v1.0"
current_version = "2"

[sources]
webseeds = ["https://seed.example/snapshots/", "http://[::1]:8080"]
peers = ["peer.example:42069", "[2001:db8::1]:1", "10.0.0.1:6881"]
trackers = ["udp://tracker.example:80/announce"]
torrent_dir = "torrents"

[torrent]
listen = "[::]:0"
seed = false
upload_limit = 1000000

[read]
deadline = 5
failure_memory = 0.5
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cachefs.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_without_a_file_the_defaults_hold() -> None:
    config = load_config(None)
    assert config == Config()
    assert (config.read.deadline, config.read.max_waiting) == (60.0, 400)
    assert config.torrent.listen == Peer("0.0.0.0", 42069)
    assert not config.mount.allow_other
    assert config.mount.mountpoint is None


def test_an_empty_file_and_empty_sections_change_nothing(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, "[mount]\n[read]\n")) == Config()


def test_what_the_file_gives_is_used_and_its_paths_start_from_its_folder(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, WHOLE))
    assert config.mount.mountpoint == Path("/mnt/cachefs")
    assert config.mount.data_dir == tmp_path / "data"
    assert config.mount.allow_other
    assert config.snapshots.chain_toml == str(tmp_path / "lists" / "mainnet.toml")
    assert (config.snapshots.minimum_version, config.snapshots.current_version) == (Version(1, 0), Version(2, 0))
    assert config.sources.webseeds == ("https://seed.example/snapshots", "http://[::1]:8080")
    assert config.sources.peers == (Peer("peer.example", 42069), Peer("2001:db8::1", 1), Peer("10.0.0.1", 6881))
    assert config.sources.torrent_dir == tmp_path / "torrents"
    assert (config.torrent.listen, config.torrent.seed, config.torrent.dht) == (Peer("::", 0), False, True)
    assert (config.read.deadline, config.read.failure_memory) == (5.0, 0.5)


def test_empty_strings_mean_none(tmp_path: Path) -> None:
    text = '[mount]\nmountpoint = ""\ndata_dir = ""\n[snapshots]\nchain_toml = ""\nminimum_version = ""\nchain = ""\n'
    assert load_config(written(tmp_path, text)) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[read]\ndeadline = "x"', 'cachefs.toml: [read] deadline: expected a number of seconds, got "x"'),
        ("[read]\ndeadline = true", "expected a number of seconds, got true"),
        ("[read]\ndeadline = 0", "expected 0.1 to 86400 seconds, got 0"),
        ("[read]\ndeadline = nan", "expected 0.1 to 86400 seconds, got NaN"),
        ("[read]\ndeadline = inf", "got Infinity"),
        ("[read]\nmax_waiting = 1.5", "[read] max_waiting: expected a whole number of reads, got 1.5"),
        ("[read]\nmax_waiting = 0", "expected 1 to 65536 reads, got 0"),
        ("[read]\nmax_waiting = 0x" + "f" * 5000, "too large to show"),
        ("[torrent]\nupload_limit = -1", "bytes per second, got -1"),
        ("[torrent]\nupload_limit = 2147483648", "[torrent] upload_limit: expected 0 to 2147483647 bytes per second"),
        ("[torrent]\ndownload_limit = 4294967297", "expected 0 to 2147483647 bytes per second, got 4294967297"),
        (f'[limits]\nsize = "{"9" * 400}GB"', '[limits] size: expected a size like "500GB"'),
        ("[torrent]\nseed = 1", "[torrent] seed: expected true or false, got 1"),
        ('[torrent]\nlisten = "42069"', '[torrent] listen: expected "HOST:PORT"'),
        ("[mount]\ndata_dir = 5", "[mount] data_dir: expected a string, got 5"),
        ('[mount]\ndata_dir = "a\\u0000b"', "[mount] data_dir: expected a path"),
        ('[mount]\ndata_dir = "~no-such-user-here/x"', "home directory"),
        ('[sources]\npeers = "host:1"', '[sources] peers: expected a list of "HOST:PORT"'),
        ('[sources]\npeers = ["host"]', '[sources] peers: expected "HOST:PORT"'),
        (
            '[sources]\nwebseeds = ["ftp://x/"]',
            "[sources] webseeds: expected a URL that begins with http:// or https://",
        ),
        ("[sources]\nwebseeds = [1]", "[sources] webseeds: expected a list of URLs, got [1]"),
        ('[sources]\ntrackers = ["udp://x"]', "a udp tracker needs a port"),
        ('[snapshots]\nversions = "some"', '[snapshots] versions: expected "highest" or "all", got "some"'),
        ("[snapshots]\nversions = []", '"highest" or "all", got []'),
        ('[snapshots]\nminimum_version = "1.x"', "[snapshots] minimum_version: expected a version"),
        ('[snapshots]\nchain = "../x"', "[snapshots] chain: expected a chain's name"),
        ('[snapshots]\nchain_toml = "ftp://x"', "[snapshots] chain_toml: expected a URL"),
        ('[snapshots]\nminimum_version="2"\ncurrent_version="1"', "[snapshots] minimum_version: v2.0 is above"),
        ("[mount]\nmountpont = 'x'", "[mount] mountpont: unknown key; did you mean mountpoint?"),
        ("[mount]\ndeadline = 5", "[mount] deadline: unknown key; it belongs in [read]"),
        ("[mount]\nxyzzy = 5", "[mount] xyzzy: unknown key; known are mountpoint, data_dir, allow_other"),
        ("[reed]\n", "[reed]: unknown section; did you mean read?"),
        ("read = 5", "read: expected a section [read], got 5"),
        ("[[read]]\n", "read: expected a section [read]"),
        ("[read\n", "cachefs.toml:1: not TOML"),
        ("[read]\ndeadline = 1\ndeadline = 2\n", "cachefs.toml:3: not TOML"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: can't be read: No such file"):
        load_config(tmp_path / "missing.toml")
    path = tmp_path / "cachefs.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)


KEYS = [(section.name, item.name) for section in fields(Config) for item in fields(getattr(Config(), section.name))]
GIVEN = st.sampled_from(
    ["''", "'x'", "-1", "0", "1e9", "nan", "true", "[]", "['x']", "[[]]", "{}", "1979-05-27", "07:32:00"]
)


@given(st.sampled_from(KEYS), GIVEN | st.text().map(json.dumps))
def test_any_value_of_any_key_is_taken_or_refused_with_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, str], value: str
) -> None:
    path = written(tmp_path_factory.getbasetemp(), f"[{key[0]}]\n{key[1]} = {value}\n")
    with suppress(ConfigError):
        load_config(path)


@given(st.text(st.characters(codec="utf-8")) | st.text("[]\"'=.\n ad0{}#"))
def test_no_text_raises_anything_but_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)
    with suppress(ConfigError):
        load_config(path)


@pytest.mark.parametrize("text", ["[" * 5000, "a = " + "[" * 5000, "read." + "a." * 900 + "b = 1", "a = " + "9" * 5000])
def test_extreme_nesting_and_numbers_are_refused(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, WHOLE)).override(
        deadline=7.0, seed=True, webseeds=("https://other.example",), mountpoint="mnt", upload_limit=0
    )
    assert config.read.deadline == 7.0
    assert config.read.failure_memory == 0.5
    assert config.torrent.seed
    assert config.torrent.upload_limit == 0
    assert config.sources.webseeds == ("https://other.example",)
    assert config.mount.mountpoint == Path.cwd() / "mnt"
    assert config.mount.data_dir == tmp_path / "data"


def test_what_was_not_given_on_the_command_line_changes_nothing(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, WHOLE))
    assert config.override(deadline=None, webseeds=(), peers=[], chain="", mountpoint=None) == config
    assert config.override() == config


def test_a_wrong_option_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"--metadata-timeout: expected 0.1 to 86400 seconds, got 0"):
        Config().override(metadata_timeout=0)
    with pytest.raises(ConfigError, match=r"--minimum-version: v2.0 is above current_version, v1.0"):
        Config().override(minimum_version="2", current_version=Version(1))
    with pytest.raises(TypeError, match="no setting is called speed"):
        Config().override(speed=1)


def test_every_key_has_a_section_of_its_own() -> None:
    keys = [key for _, key in KEYS]
    assert len(keys) == len(set(keys))


def test_settings_can_not_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().read.__setattr__("deadline", 1.0)


@pytest.mark.parametrize(
    ("chain", "chain_toml", "name"),
    [
        ("sepolia", "/x/mainnet.toml", "sepolia"),
        ("", "/x/arb-sepolia.toml", "arb-sepolia"),
        ("", "https://x.example/lists/mainnet.toml?raw=true", "mainnet"),
        ("", "/x/chain.toml", None),
        ("", "https://x.example/chain.toml", None),
        ("", "/x/my list.toml", None),
        ("", "", None),
    ],
)
def test_the_chains_name_is_given_or_taken_from_the_file(chain: str, chain_toml: str, name: str | None) -> None:
    assert Config().override(chain=chain, chain_toml=chain_toml).snapshots.chain_name == name


@given(st.ip_addresses() | st.from_regex(r"\A[a-z0-9]{1,9}(\.[a-z]{1,9}){0,3}\Z"), st.integers(1, 65535))
def test_a_peer_is_read_as_it_was_written(host: object, port: int) -> None:
    peer = Peer(str(host), port)
    assert Peer.parse(str(peer)) == peer


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "h:", "h:0", "h:65536", "h:-1", "h:1:2", "::1:80", "[::1]", "[h]:1", "[::1:1", "a b:1", "-h:1"),
        *("a..b:1", "h:1\n", "h\0:1", "user@h:1", "http://h:1", "x" * 64 + ":1", "h:\u0663"),
    ],
)
def test_what_is_not_a_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Peer.parse(text)


@given(st.text())
def test_no_text_raises_anything_but_a_value_error_as_peer_version_or_url(text: str) -> None:
    for parse in (Peer.parse, Version.parse, web_seed):
        with suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(("text", "version"), [("v1", (1, 0)), ("1.1", (1, 1)), ("v2.10", (2, 10))])
def test_versions_are_read_and_ordered_as_numbers(text: str, version: tuple[int, int]) -> None:
    assert Version.parse(text) == Version(*version)
    assert Version(1) < Version(1, 9) < Version(1, 10) < Version(2)
    assert Version.parse(str(Version(*version))) == Version(*version)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "seed.example",
        "https://",
        "https:///x",
        "file:///etc",
        "http://h:0",
        "http://h:99999",
        "http://[::1",
        "http://h/ x",
        "http://h/\n",
        "http://h/?a",
        "http://h/#a",
        "http://h\\x",
        "http://ü/",
        "-http://h",
    ],
)
def test_what_names_can_not_be_appended_to_is_no_web_seed(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        web_seed(url)


def test_erigons_webseed_toml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "webseed.toml"
    path.write_text('one = "v1:https://a.example/x/"\ntwo = "https://b.example"\nagain = "https://a.example/x"\n')
    assert load_webseed_toml(path) == ("https://a.example/x", "https://b.example")


@pytest.mark.parametrize("line", ["one = 5", "one = 'x'", "[one]", "one = "])
def test_a_wrong_webseed_toml_is_refused_by_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "webseed.toml"
    path.write_text(line)
    with pytest.raises(ConfigError, match=r"webseed\.toml"):
        load_webseed_toml(path)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ('size = "500GB"\nfree_space = 1000\nage = "90d"', Limits(500 * 10**9, 1000, 90 * 86_400.0)),
        ('size = "1.5 TiB"\nage = 60', Limits(3 * 2**39, 0, 60.0)),
        ('size = "20kB"\nfree_space = "0B"\nage = "2w"', Limits(20_000, 0, 14 * 86_400.0)),
        ('size = ""\nage = ""', Limits()),
        (
            'count = 7\n[limits.records]\nsize = "20GB"\nage = "30d"\ncount = 1000',
            Limits(count=7, records=CatalogueLimits(20 * 10**9, 30 * 86_400.0, 1000)),
        ),
        ('snapshots = { size = "1TB" }', Limits(snapshots=CatalogueLimits(10**12))),
    ],
)
def test_limits_are_written_as_people_write_them(tmp_path: Path, text: str, limits: Limits) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[limits]\n{text}\n")
    assert load_config(tmp_path / "cachefs.toml").limits == limits


@pytest.mark.parametrize("value", ['size = "500"', 'size = "-1GB"', "size = 1.5", "size = true", 'size = "5 gb"'])
def test_a_size_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[limits]\n{value}\n")
    with pytest.raises(ConfigError, match=r"\[limits\] size: expected a size like"):
        load_config(tmp_path / "cachefs.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("records = 5", "records: expected a table of size, age, count, got 5"),
        ("[limits.records]\nfree_space = 5", "records: expected a table of size, age, count"),
        ('[limits.records]\nsize = "5"', "records: size: expected a size like"),
        ("[limits.snapshots]\ncount = -1", "snapshots: count: expected 0 to"),
        ("[limits.music]\ncount = 1", "music: unknown key"),
    ],
)
def test_limits_of_a_catalogue_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[limits]\n{text}\n")
    with pytest.raises(ConfigError, match=rf"\[limits\] {said}"):
        load_config(tmp_path / "cachefs.toml")


@pytest.mark.parametrize("value", ['age = "90"', 'age = "1y"', "age = -1", "age = true"])
def test_an_age_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[limits]\n{value}\n")
    with pytest.raises(ConfigError, match=r"\[limits\] age: expected a time like"):
        load_config(tmp_path / "cachefs.toml")


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ('on_unavailable = "wait"', (("*", "wait"),)),
        (
            '[read.on_unavailable]\n"snapshots/a*" = "fail-fast"\n"*" = "wait"',
            (("snapshots/a*", "fail-fast"), ("*", "wait")),
        ),
        ("on_unavailable = {}", ()),
    ],
)
def test_what_a_reader_gets_is_one_mode_or_one_for_each_pattern_in_order(
    tmp_path: Path, text: str, modes: tuple[tuple[str, str], ...]
) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[read]\n{text}\n")
    assert load_config(tmp_path / "cachefs.toml").read.on_unavailable == modes


@pytest.mark.parametrize("value", ['"never"', "1", '["wait"]', '{"*" = 5}', '{"*" = {"x" = "wait"}}'])
def test_a_mode_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[read]\non_unavailable = {value}\n")
    with pytest.raises(ConfigError, match=r"\[read\] on_unavailable: expected \"wait\""):
        load_config(tmp_path / "cachefs.toml")


@pytest.mark.parametrize(
    ("key", "option"), [("peers", "peer"), ("trackers", "tracker"), ("rclone_remotes", "rclone-remote")]
)
def test_an_option_that_is_given_several_times_is_named_as_it_is_typed(key: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{option}: "):
        Config().override(**{key: ("nothing of the kind",)})
