"""The tree of names: complete, sorted, and with inode numbers that stand for content."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.catalog.tree import ROOT_INODE, Directory, File, Node, Tree, free_inode, outdated
from cachefs.content import ContentId
from cachefs.errors import CatalogError

ONE, TWO = ContentId.btih("11" * 20), ContentId.btih("22" * 20)
ENTRIES = {"b.seg": ONE, "history/v1.v": ONE, "a.seg": TWO, "history/deep/er/x": TWO, "hi": ONE}

names = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)
catalogues = st.dictionaries(names, st.sampled_from([ONE, TWO])).filter(
    lambda entries: not any(other.startswith(f"{name}/") for name in entries for other in entries)
)


def directory(node: Node | None) -> Directory:
    assert isinstance(node, Directory)
    return node


def walk(tree: Tree, top: Directory) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for name, node in top.children.items():
        assert tree.lookup(top.inode, name) is node
        assert tree.node(node.inode) is node
        found[name] = node
        if isinstance(node, Directory):
            assert node.parent == top.inode
            found |= {f"{name}/{path}": below for path, below in walk(tree, node).items()}
    return found


def test_a_catalogue_is_a_directory_under_the_root() -> None:
    tree = Tree.build({"snapshots": ENTRIES, "records": {"song.mp3": TWO}})
    assert tree.root is tree.node(ROOT_INODE)
    assert tree.root.parent == ROOT_INODE
    assert list(tree.root.children) == ["records", "snapshots"]
    assert list(directory(tree.find("snapshots")).children) == ["a.seg", "b.seg", "hi", "history"]
    file = tree.find("snapshots", "history/deep/er/x")
    assert isinstance(file, File)
    assert (file.name, file.path, file.catalogue, file.content) == ("x", "history/deep/er/x", "snapshots", TWO)


@given(catalogues)
def test_every_name_is_found_once_and_nothing_else(entries: dict[str, ContentId]) -> None:
    tree = Tree.build({"snapshots": entries})
    nodes = walk(tree, directory(tree.find("snapshots")))
    assert {path: node.content for path, node in nodes.items() if isinstance(node, File)} == entries
    assert {file.path: file.content for file in tree.files()} == entries
    assert len(tree) == len(nodes) + 2
    assert all(tree.find("snapshots", path) is node for path, node in nodes.items())


@given(catalogues, st.integers(0, 10))
def test_a_listing_is_sorted_and_goes_on_where_it_was_left(entries: dict[str, ContentId], position: int) -> None:
    tree = Tree.build({"snapshots": entries})
    for node in [tree.root, *walk(tree, tree.root).values()]:
        if isinstance(node, Directory):
            whole = list(node.listing())
            assert [child.name for _, child in whole] == sorted(node.children)
            assert [after for after, _ in whole] == list(range(1, len(whole) + 1))
            assert list(node.listing(position)) == whole[position:]


@given(catalogues)
def test_inode_numbers_are_the_same_after_a_restart(entries: dict[str, ContentId]) -> None:
    one = Tree.build({"snapshots": entries})
    two = Tree.build({"snapshots": dict(reversed(entries.items()))})
    assert {path: node.inode for path, node in walk(one, one.root).items()} == {
        path: node.inode for path, node in walk(two, two.root).items()
    }


def test_changed_content_has_another_inode_and_the_rest_keeps_theirs() -> None:
    before, after = Tree.build({"snapshots": ENTRIES}), Tree.build({"snapshots": ENTRIES | {"a.seg": ONE, "new": TWO}})
    old, new = walk(before, before.root), walk(after, after.root)
    assert {path for path, node in old.items() if new[path].inode != node.inode} == {"snapshots/a.seg"}


def test_one_name_in_two_catalogues_has_two_inodes() -> None:
    tree = Tree.build({"one": {"a/b": ONE}, "two": {"a/b": ONE}})
    assert len({node.inode for node in walk(tree, tree.root).values()}) == 6


def test_inode_numbers_are_neither_reserved_nor_negative_for_the_kernel() -> None:
    tree = Tree.build({"snapshots": ENTRIES})
    assert all(1 < node.inode < 2**63 for node in walk(tree, tree.root).values())


@pytest.mark.parametrize(
    ("wanted", "taken", "got"),
    [
        (7, set[int](), 7),
        (7, {7, 8}, 9),
        (0, set[int](), 2),
        (1, {2}, 3),
        (2**63 - 1, {2**63 - 1}, 2),
        (2**64 - 1, set[int](), 2**63 - 1),
        (2**63, set[int](), 2),
    ],
)
def test_a_number_that_is_taken_or_reserved_gives_way_to_the_next(wanted: int, taken: set[int], got: int) -> None:
    assert free_inode(wanted, taken) == got


def test_what_is_not_there_is_not_found() -> None:
    tree = Tree.build({"snapshots": ENTRIES})
    file = tree.find("snapshots", "a.seg")
    assert file is not None
    assert tree.node(0) is None
    assert tree.lookup(ROOT_INODE, "a.seg") is None
    assert tree.lookup(file.inode, "a.seg") is None
    assert tree.lookup(12345, "a.seg") is None
    assert tree.find("records") is None
    assert tree.find("snapshots", "a.seg/below") is None
    assert tree.find("snapshots", "nothing/there") is None


def test_an_empty_mount_and_an_empty_catalogue_are_shown() -> None:
    assert len(Tree.build({})) == 1
    assert directory(Tree.build({"records": {}}).find("records")).children == {}


@pytest.mark.parametrize(
    "catalogues",
    [{"a/b": {}}, {"..": {}}, {"": {}}, {"s": {"../x": ONE}}, {"s": {"a": ONE, "a/b": ONE}}],
)
def test_names_that_can_not_be_shown_are_refused(catalogues: dict[str, dict[str, ContentId]]) -> None:
    with pytest.raises(CatalogError):
        Tree.build(catalogues)


def test_twenty_thousand_names_are_all_found() -> None:
    entries = {
        f"{folder}v1.0-{index:06}-{index + 1:06}-headers.seg": ContentId("btih", index.to_bytes(20, "big"))
        for folder in ("", "history/", "accessor/", "domain/deep/")
        for index in range(5_000)
    }
    tree = Tree.build({"snapshots": entries})
    assert len(tree) == 20_000 + 6
    assert {file.path: file.content for file in tree.files()} == entries
    assert len(directory(tree.find("snapshots")).children) == 5_003


def test_what_another_tree_makes_outdated_is_each_entry_that_it_lacks_or_has_with_another_inode() -> None:
    one, two = ContentId("btih", bytes(20)), ContentId("btih", bytes([1]) * 20)
    old = Tree.build({"snapshots": {"same.seg": one, "changed.seg": one, "gone.seg": one, "a/gone.kv": one}})
    new = Tree.build({"snapshots": {"same.seg": one, "changed.seg": two, "new.seg": one, "b/new.kv": one}})
    found = {(old.node(directory), name) for directory, name in outdated(old, new)}
    folder, inner = old.find("snapshots"), old.find("snapshots", "a")
    assert found == {(folder, "changed.seg"), (folder, "gone.seg"), (folder, "a"), (inner, "gone.kv")}
    assert list(outdated(new, new)) == []
