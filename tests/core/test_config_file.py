"""From YAML files and overrides to one dict."""

import pytest

from src.core.config_file import ConfigTree, load_config_tree, parse_overrides
from src.core.errors import ConfigError
from src.core.yaml_text import (
    MAX_BYTES,
    MAX_VALUES,
    dotted,
    dump_yaml,
    parse_yaml,
)
from tests.fixtures.config_files import write_configs


def refused(folder, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config_tree(write_configs(folder, config=text))
    return str(caught.value)


# ---- includes and merging ----


def test_later_include_wins_over_earlier_and_the_file_itself_over_both(
    tmp_path,
):
    path = write_configs(
        tmp_path,
        one="a: 1\nb: 1\nc: 1\n",
        two="b: 2\nc: 2\n",
        main="__include__: [one.yml, two.yml]\nc: 3\n",
    )
    assert load_config_tree(path).values == {"a": 1, "b": 2, "c": 3}


def test_includes_are_read_depth_first(tmp_path):
    path = write_configs(
        tmp_path,
        deep="x: deep\ny: deep\nz: deep\n",
        middle="__include__: [deep.yml]\ny: middle\nz: middle\n",
        main="__include__: [middle.yml]\nz: main\n",
    )
    assert load_config_tree(path).values == {
        "x": "deep",
        "y": "middle",
        "z": "main",
    }


def test_include_is_relative_to_the_including_file(tmp_path):
    (tmp_path / "parts").mkdir()
    write_configs(
        tmp_path / "parts", a="__include__: [b.yml]\n", b="found: True\n"
    )
    assert load_config_tree(
        write_configs(tmp_path, main="__include__: [parts/a.yml]\n")
    ).values == {"found": True}


def test_include_may_be_absolute(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    part = write_configs(tmp_path / "elsewhere", part="found: True\n")
    assert load_config_tree(
        write_configs(tmp_path, main=f"__include__: ['{part}']\n")
    ).values == {"found": True}


def test_mappings_merge_at_every_depth(tmp_path):
    path = write_configs(
        tmp_path,
        base="a: {b: {c: 1, d: 1}, e: 1}\n",
        main="__include__: [base.yml]\na: {b: {d: 2}}\n",
    )
    assert load_config_tree(path).values == {
        "a": {"b": {"c": 1, "d": 2}, "e": 1}
    }


@pytest.mark.parametrize("new", ["[9]", "~", "5", "word"])
def test_list_is_replaced_whole(tmp_path, new):
    path = write_configs(
        tmp_path,
        base="a: {b: [1, 2, {c: 3}]}\n",
        main=f"__include__: [base.yml]\na: {{b: {new}}}\n",
    )
    assert load_config_tree(path).values == {
        "a": {"b": {"[9]": [9], "~": None, "5": 5, "word": "word"}[new]}
    }


def test_block_with_another_type_replaces_the_old_block(tmp_path):
    path = write_configs(
        tmp_path,
        base="optimizer: {type: AdamW, betas: [0.9, 0.999], lr: 1}\n",
        main="__include__: [base.yml]\noptimizer: {type: SGD, momentum: 0.9}\n",
    )
    assert load_config_tree(path).values == {
        "optimizer": {"type": "SGD", "momentum": 0.9}
    }


def test_block_that_repeats_its_type_merges(tmp_path):
    path = write_configs(
        tmp_path,
        base="optimizer: {type: AdamW, lr: 1}\n",
        main="__include__: [base.yml]\noptimizer: {type: AdamW, eps: 2}\n",
    )
    assert load_config_tree(path).values == {
        "optimizer": {"type": "AdamW", "lr": 1, "eps": 2}
    }


def test_same_file_may_be_included_twice_on_different_branches(tmp_path):
    path = write_configs(
        tmp_path,
        base="a: 1\n",
        left="__include__: [base.yml]\nb: 1\n",
        right="__include__: [base.yml]\nc: 1\n",
        main="__include__: [left.yml, right.yml]\n",
    )
    assert load_config_tree(path).values == {"a": 1, "b": 1, "c": 1}


def test_circle_of_includes_shows_the_chain(tmp_path):
    path = write_configs(
        tmp_path,
        b="__include__: [c.yml]\n",
        c="__include__: [a.yml]\n",
        a="__include__: [b.yml]\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config_tree(path)
    chain = " -> ".join(
        str(tmp_path / name) for name in ("a.yml", "b.yml", "c.yml", "a.yml")
    )
    assert (
        str(caught.value)
        == f"configuration files include each other circularly: {chain}"
    )


def test_file_that_includes_itself_is_a_circle(tmp_path):
    path = tmp_path / "config.yml"
    assert (
        refused(tmp_path, "__include__: [config.yml]\n")
        == f"configuration files include each other circularly: {path} -> {path}"
    )


def test_missing_include_is_named_with_the_file_that_wants_it(tmp_path):
    message = refused(tmp_path, "__include__: [absent.yml]\n")
    assert (
        message
        == f"configuration file not found: {tmp_path / 'config.yml'} -> {tmp_path / 'absent.yml'}"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [("base.yml", "'base.yml'"), ("[1]", "[1]"), ("{a: b}", "{'a': 'b'}")],
)
def test_include_that_is_not_a_list_of_names_is_refused(tmp_path, value, shown):
    assert (
        refused(tmp_path, f"__include__: {value}\n")
        == f"{tmp_path / 'config.yml'}: __include__ must be a list of file names, not {shown}"
    )


def test_missing_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match="configuration file not found: .*/absent.yml"
    ):
        load_config_tree(tmp_path / "absent.yml")


def test_folder_is_refused(tmp_path):
    (tmp_path / "folder.yml").mkdir()
    with pytest.raises(
        ConfigError, match="folder.yml cannot be read: .*directory"
    ):
        load_config_tree(tmp_path / "folder.yml")


def test_other_suffix_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"config.json is not a .yml or .yaml file"
    ):
        load_config_tree(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- 1\n- 2\n", "list"), ("word\n", "str"), ("3\n", "int")],
)
def test_file_without_a_mapping_is_refused(tmp_path, text, kind):
    assert (
        refused(tmp_path, text)
        == f"{tmp_path / 'config.yml'} holds a {kind}, not a mapping of settings"
    )


def test_empty_file_sets_nothing(tmp_path):
    assert (
        load_config_tree(write_configs(tmp_path, config="# nothing\n")).values
        == {}
    )


def test_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "config.yml").write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    assert load_config_tree(tmp_path / "config.yml").values == {"epochs": 3}


def test_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "config.yml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(
        ConfigError,
        match="config.yml cannot be read: 'utf-8' codec can't decode",
    ):
        load_config_tree(tmp_path / "config.yml")


def test_oversized_file_is_refused_with_both_sizes(tmp_path):
    message = refused(tmp_path, "#" * (MAX_BYTES + 1))
    assert (
        message == f"{tmp_path / 'config.yml'} has {MAX_BYTES + 1} bytes; "
        f"a configuration may have at most {MAX_BYTES}"
    )


def test_loading_one_file_leaves_the_next_untouched(tmp_path):
    first, second = (
        write_configs(tmp_path, first="a: {b: 1, c: [1]}\n"),
        write_configs(tmp_path, second="a: {d: 2}\n"),
    )
    load_config_tree(first)
    assert load_config_tree(second).values == {"a": {"d": 2}}


def test_merged_values_are_copies(tmp_path):
    over = {"a": [1, {"b": 2}]}
    tree = ConfigTree()
    tree.merge(over, "test")
    tree.values["a"][1]["b"] = 3
    assert over == {"a": [1, {"b": 2}]}


# ---- where a key came from ----


def test_origin_is_the_file_and_line_that_set_a_key_last(tmp_path):
    path = write_configs(
        tmp_path,
        base="x: 0\na:\n  b: 1\n  c: 1\n",
        main="__include__: [base.yml]\na:\n  c: 2\n",
    )
    tree = load_config_tree(path)
    assert (tree.origin(("a", "b")), tree.origin(("a", "c"))) == (
        f"{tmp_path / 'base.yml'}:3",
        f"{path}:3",
    )


def test_origin_of_a_list_item_is_its_line(tmp_path):
    path = write_configs(
        tmp_path, config="ops:\n  - {type: A}\n  - {type: B,\n     p: 1}\n"
    )
    assert load_config_tree(path).origin(("ops", 1, "p")) == f"{path}:4"


def test_origin_of_an_override_is_the_command_line(tmp_path):
    tree = load_config_tree(write_configs(tmp_path, config="a: {b: 1, c: 2}\n"))
    tree.merge({"a": {"b": 5}}, "command line")
    assert (tree.origin(("a", "b")), tree.origin(("a", "c"))) == (
        "command line",
        f"{tmp_path / 'config.yml'}:1",
    )


def test_origin_of_a_replaced_list_forgets_the_old_lines(tmp_path):
    tree = load_config_tree(write_configs(tmp_path, config="a: [{b: 1}]\n"))
    tree.merge({"a": [{"b": 2}]}, "command line")
    assert tree.origin(("a", 0, "b")) == "command line"


def test_origin_of_a_key_that_is_not_there_is_its_nearest_parent(tmp_path):
    tree = load_config_tree(write_configs(tmp_path, config="a: {b: 1}\n"))
    assert (tree.origin(("a", "z")), tree.origin(("z",))) == (
        f"{tmp_path / 'config.yml'}:1",
        "the configuration",
    )


# ---- what YAML may hold ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("-2e3", -2000.0),
        ("+1e+2", 100.0),
        ("1.5e-3", 1.5e-3),
        ("1.0e-4", 1e-4),
        ("2.e-1", 0.2),
        ("1e4x", "1e4x"),
        ("e4", "e4"),
        ("'1e-4'", "1e-4"),
        ("10", 10),
        ("0.1", 0.1),
    ],
)
def test_numbers_with_exponents_are_numbers_and_look_alikes_words(text, value):
    parsed, _ = parse_yaml(f"x: {text}", "test")
    assert (parsed["x"], type(parsed["x"])) == (value, type(value))


def test_duplicate_key_is_refused_with_both_lines(tmp_path):
    assert (
        refused(tmp_path, "epochs: 1\nseed: 2\nepochs: 3\n")
        == f"{tmp_path / 'config.yml'}:3 sets epochs again; line 1 sets it already"
    )


def test_duplicate_key_deep_inside_is_refused_with_its_path(tmp_path):
    assert (
        "config.yml:4 sets a.ops[1].p again; line 4 sets it already"
        in refused(tmp_path, "a:\n  ops:\n    - {p: 1}\n    - {p: 1, p: 2}\n")
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("5: x", "5"),
        ("~: x", "~"),
        ("a: {true: x}", "true"),
        ("a: [{1.5: x}]", "1.5"),
    ],
)
def test_key_that_is_not_a_word_is_refused(tmp_path, text, key):
    assert (
        refused(tmp_path, text)
        == f"{tmp_path / 'config.yml'}:1 has a key that is not a string: {key}"
    )


def test_list_as_key_is_refused(tmp_path):
    assert (
        refused(tmp_path, "? [a, b]\n: 1\n")
        == f"{tmp_path / 'config.yml'}:1 has a key that is not a string"
    )


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system",
        "!!python/object:os.system",
        "!!python/name:os.system",
        "!!python/module:os",
        "!own",
    ],
)
def test_tag_that_would_build_an_object_is_refused_with_its_line(tmp_path, tag):
    message = refused(tmp_path, f"epochs: 1\nx: {tag} ['true']\n")
    assert message.startswith(
        f"{tmp_path / 'config.yml'}:2 cannot be read as YAML: could not determine a constructor for the tag"
    )


def test_code_in_yaml_is_not_executed(tmp_path):
    canary = tmp_path / "canary"
    refused(
        tmp_path, f"x: !!python/object/apply:os.system ['touch {canary}']\n"
    )
    assert not canary.exists()


def test_aliases_that_explode_are_refused(tmp_path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
        for i in range(1, 10)
    )
    assert (
        refused(tmp_path, bomb)
        == f"{tmp_path / 'config.yml'} has more than {MAX_VALUES} values once its aliases are expanded"
    )


def test_alias_of_its_own_container_is_refused(tmp_path):
    assert (
        refused(tmp_path, "a: &a [*a]\n")
        == f"{tmp_path / 'config.yml'} is nested too deeply"
    )


def test_deep_nesting_is_refused(tmp_path):
    assert (
        refused(tmp_path, "a: " + "[" * 5000 + "]" * 5000)
        == f"{tmp_path / 'config.yml'} is nested too deeply"
    )


def test_modest_aliases_are_expanded():
    assert parse_yaml("a: &x {b: 1}\nc: *x\n", "test")[0] == {
        "a": {"b": 1},
        "c": {"b": 1},
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\n\tb: 2\n", 2),
        ("a: [1, 2\n", 2),
        ("a: 'open\n", 2),
        ("a: b: c\n", 1),
        ("a: *nowhere\n", 1),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_malformed_yaml_is_refused_with_its_line(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(
        f"{tmp_path / 'config.yml'}:{line} cannot be read as YAML: "
    )


def test_date_that_does_not_exist_is_refused(tmp_path):
    assert (
        refused(tmp_path, "seed: 2020-13-45\n")
        == f"{tmp_path / 'config.yml'} cannot be read as YAML: month must be in 1..12"
    )


# ---- overrides ----


@pytest.mark.parametrize(
    ("items", "values"),
    [
        (["epochs=12"], {"epochs": 12}),
        (["optimizer.lr=1e-4"], {"optimizer": {"lr": 1e-4}}),
        (["a.b.c=[2, 3]"], {"a": {"b": {"c": [2, 3]}}}),
        (["a={b: true, c: ~}"], {"a": {"b": True, "c": None}}),
        (["a.b=1", "a.c=2"], {"a": {"b": 1, "c": 2}}),
        (["a.b=1", "a.b=2"], {"a": {"b": 2}}),
        (["a=x=y"], {"a": "x=y"}),
        (["a="], {"a": None}),
        (["a='1e-4'"], {"a": "1e-4"}),
        (
            ["output_dir=/some/path with space"],
            {"output_dir": "/some/path with space"},
        ),
        ([], {}),
    ],
)
def test_overrides_become_nested_settings(items, values):
    assert parse_overrides(items) == values


@pytest.mark.parametrize("item", ["epochs", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_override_without_key_or_value_is_refused(item):
    with pytest.raises(ConfigError) as caught:
        parse_overrides([item])
    assert (
        str(caught.value) == f"-u {item!r} is not of the form section.key=value"
    )


def test_override_that_is_not_yaml_is_refused_with_its_key():
    with pytest.raises(
        ConfigError, match=r"^-u a\.b:1 cannot be read as YAML: "
    ):
        parse_overrides(["a.b=[1, 2"])


def test_code_in_an_override_is_refused_and_not_executed(tmp_path):
    canary = tmp_path / "canary"
    with pytest.raises(
        ConfigError,
        match="^-u a:1 cannot be read as YAML: could not determine a constructor for the tag",
    ):
        parse_overrides(
            [f"a=!!python/object/apply:os.system ['touch {canary}']"]
        )
    assert not canary.exists()


# ---- references ----


def resolved(values):
    tree = ConfigTree()
    tree.merge(values, "test")
    tree.resolve_references()
    return tree.values


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("${size}", [64, 96]),
        ("${size.0}", 64),
        ("${a.b}", 7),
        ("${a}", {"b": 7}),
    ],
)
def test_reference_takes_the_value_that_it_names(reference, value):
    assert resolved({"size": [64, 96], "a": {"b": 7}, "x": {"y": [reference]}})[
        "x"
    ] == {"y": [value]}


def test_referred_list_is_a_copy():
    values = resolved({"size": [64, 96], "x": "${size}"})
    values["x"].append(1)
    assert values["size"] == [64, 96]


def test_reference_sees_an_override(tmp_path):
    tree = load_config_tree(
        write_configs(tmp_path, config="size: 64\nx: ${size}\n")
    )
    tree.merge({"size": 128}, "command line")
    tree.resolve_references()
    assert tree.values["x"] == 128


@pytest.mark.parametrize(
    "reference", ["${nowhere}", "${a.z}", "${size.2}", "${size.x}", "${a.b.c}"]
)
def test_reference_to_nothing_is_refused_with_its_place(tmp_path, reference):
    tree = load_config_tree(
        write_configs(
            tmp_path,
            config=f"size: [1, 2]\na: {{b: 1}}\nx:\n  y: {reference}\n",
        )
    )
    with pytest.raises(ConfigError) as caught:
        tree.resolve_references()
    assert (
        str(caught.value)
        == f"x.y refers to {reference}, which is not set ({tmp_path / 'config.yml'}:4)"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"a": "${b}", "b": "${c}", "c": 1},
        {"a": "${a}"},
        {"a": "${b}", "b": {"d": "${c}"}, "c": 1},
    ],
)
def test_reference_to_a_reference_is_refused(values):
    with pytest.raises(
        ConfigError,
        match=r"^a refers to \$\{\w\}, which is or contains a reference itself \(test\)$",
    ):
        resolved(values)


def test_dollar_in_the_middle_of_a_word_is_unchanged():
    assert (
        resolved({"a": "costs ${b} dollars", "b": 1})["a"]
        == "costs ${b} dollars"
    )


# ---- writing ----


@pytest.mark.parametrize(
    "value",
    [
        "1e-4",
        "yes",
        "012",
        "~",
        "a: b",
        "ünï",
        "1",
        "",
        1e-4,
        1e-05,
        1e22,
        3,
        True,
        None,
        [1, [2.5, {"b": "c"}]],
        {"x": {}},
    ],
)
def test_written_settings_read_back_equal(value):
    parsed, _ = parse_yaml(dump_yaml({"key": value}), "test")
    assert (parsed, type(parsed["key"])) == ({"key": value}, type(value))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("a",), "a"),
        (("a", "b"), "a.b"),
        (("a", "ops", 0, "p"), "a.ops[0].p"),
        (("a", 1, 2), "a[1][2]"),
    ],
)
def test_key_paths_are_written_as_people_do(path, text):
    assert dotted(path) == text


def test_a_referenced_value_is_reported_with_the_line_that_sets_it(tmp_path):
    tree = load_config_tree(
        write_configs(tmp_path, config="size: [64, wide]\nx:\n  y: ${size.1}\n")
    )
    tree.resolve_references()
    config = tmp_path / "config.yml"
    assert (
        tree.origin(("x", "y"))
        == f"{config}:3, which takes it from size[1] at {config}:1"
    )
