"""Prompt files become agents, and mistakes in them are told with file, line and key."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piagent_daemon import agents, templates
from piagent_daemon.agents import Agent, load_agents, packaged_prompts, read_agent
from piagent_daemon.contract import Options
from piagent_daemon.errors import ConfigError


def write(folder: Path, text: str, name: str = "butler") -> Path:
    path = folder / f"{name}.md"
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_agents(folder)
    return tuple(problem.removeprefix(f"{folder}/") for problem in caught.value.problems)


# ------------------------------------------------------------------------------------------------------- packaged ones


def test_there_are_a_general_and_a_voice_agent() -> None:
    found = load_agents(None)
    assert list(found) == ["general", "voice"]
    assert found["general"].description
    assert found["voice"].interrupt
    assert found["voice"].options.num_predict


def test_the_packaged_prompts_are_short() -> None:
    """About 15 tokens of a prompt take a Pi a second."""
    for agent in load_agents(None).values():
        assert len(agent.system) < 360


def test_the_packaged_templates_are_right() -> None:
    for path in packaged_prompts().glob("*.md"):
        assert read_agent(path, check=True)


def test_prompts_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "piagent_daemon"
    (package / "prompts").mkdir(parents=True)
    monkeypatch.setattr(agents, "__file__", str(package / "agents.py"))
    assert packaged_prompts() == package / "prompts"
    (package / "prompts").rmdir()
    assert packaged_prompts() == tmp_path / "prompts"


# --------------------------------------------------------------------------------------------------------------- files


def test_files_add_and_override(tmp_path: Path) -> None:
    write(tmp_path, "You are a butler.")
    write(tmp_path, "You are terse.", "general")
    found = load_agents(tmp_path)
    assert list(found) == ["butler", "general", "voice"]
    assert found["general"] == Agent("general", "You are terse.")


def test_every_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        ---
        description: Serves the house
        provider: ollama
        model: qwen2.5:7b
        options: {temperature: 0, top_p: 0.9, stop: ["END"], num_predict: 80}
        stream: sentences
        interrupt: true
        think: low
        format: {type: object, properties: {on: {type: boolean}}}
        tools: [lights, heating]
        filler: {text: One moment, seconds: 1.5}
        stop_phrases: [stop, be quiet]
        languages: [de, no]
        context: "It is {{ now }} for {{ context.user }} in {{ conversation_id }} by {{ agent }}"
        ---
        You are a butler.
        """,
    )
    assert load_agents(tmp_path)["butler"] == Agent(
        name="butler",
        system="You are a butler.",
        description="Serves the house",
        provider="ollama",
        model="qwen2.5:7b",
        options=Options(temperature=0, top_p=0.9, stop=["END"], num_predict=80),
        stream="sentences",
        interrupt=True,
        think="low",
        format={"type": "object", "properties": {"on": {"type": "boolean"}}},
        tools=("lights", "heating"),
        filler={"text": "One moment", "seconds": 1.5},
        stop_phrases=("stop", "be quiet"),
        languages=("de", "no"),
        context="It is {{ now }} for {{ context.user }} in {{ conversation_id }} by {{ agent }}",
    )


def test_the_system_prompt_is_the_same_on_every_machine(tmp_path: Path) -> None:
    path = tmp_path / "butler.md"
    path.write_bytes(b"\xef\xbb\xbf---\r\ninterrupt: yes\r\n---\r\n\r\nYou are a butler.  \r\nBe \xc3\xbc.\t\r\n\r\n")
    agent = read_agent(path)
    assert agent.system == "You are a butler.\nBe ü."
    assert agent.interrupt


def test_a_system_prompt_is_rendered_once_and_may_name_its_agent(tmp_path: Path) -> None:
    write(tmp_path, "You are {{ agent }}.{# not for the model #}{% if agent == 'butler' %} At your service.{% endif %}")
    assert load_agents(tmp_path)["butler"].system == "You are butler. At your service."


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden.md", "butler.md~"):
        (tmp_path / name).write_text("---\nbroken")
    (tmp_path / "folder.md").mkdir()
    assert list(load_agents(tmp_path)) == ["general", "voice"]


def test_an_empty_front_matter_is_fine(tmp_path: Path) -> None:
    write(tmp_path, "---\n---\nYou are a butler.\n---\nReally.")
    assert load_agents(tmp_path)["butler"].system == "You are a butler.\n---\nReally."
    write(tmp_path, "---\n# nothing\n---\nYou are a butler.")
    assert load_agents(tmp_path)["butler"].system == "You are a butler."


@pytest.mark.parametrize("above", ["\n", "\r\n\n", "  \n\t\n", "\ufeff", "\ufeff\n", "\n\ufeff", "\ufeff\ufeff"])
def test_blank_lines_above_the_front_matter_do_not_matter(tmp_path: Path, above: str) -> None:
    (tmp_path / "butler.md").write_text(f"{above}---\nmodel: small:1b\n---\nYou are a butler.")
    agent = load_agents(tmp_path)["butler"]
    assert (agent.model, agent.system) == ("small:1b", "You are a butler.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n\n---\nmodel: x\n", "butler.md:3: the front matter is not closed by a second line ---"),
        ("\n---\nmodel: [\n---\nx", "butler.md:4: expected the node content"),
        ("\n\n---\n\n- a\n---\nx", "butler.md:3: the front matter should be lines of key: value"),
        ("\n---\nwhen: !!int x\n---\nx", "butler.md:2: this is not YAML that can be used"),
        ("\n---\nmodel: \x07\n---\nx", "butler.md:2: this is not YAML"),
        ("\n---\nmodel: x\nmodle: y\n---\nx", "butler.md:4: there is no key modle"),
        ("\n---\nmodel: x\n---\n{{ now }}", "butler.md:5: 'now' is undefined"),
    ],
)
def test_blank_lines_count_where_a_mistake_is_told(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "butler.md").write_text(text)
    (found,) = problems(tmp_path)
    assert found.startswith(problem)


def test_a_line_further_down_opens_no_front_matter(tmp_path: Path) -> None:
    (tmp_path / "butler.md").write_text("\nYou are a butler.\n---\nmodel: small:1b\n---\n")
    agent = load_agents(tmp_path)["butler"]
    assert (agent.model, agent.system) == (None, "You are a butler.\n---\nmodel: small:1b\n---")


def test_yes_and_on_are_words_but_serve_as_true(tmp_path: Path) -> None:
    write(tmp_path, "---\ndescription: trueish\ninterrupt: On\nlanguages: [no, true story]\nmodel: 2001-01-01\n---\nx")
    agent = load_agents(tmp_path)["butler"]
    assert (agent.description, agent.interrupt, agent.model) == ("trueish", True, "2001-01-01")
    assert agent.languages == ("no", "true story")


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "butler.md: there is no system prompt in it"),
        ("---\nmodel: x\n---\n \n", "butler.md: there is no system prompt in it"),
        ("---\nmodel: x\n", "butler.md:1: the front matter is not closed by a second line ---"),
        ("---\n- a\n---\nx", "butler.md:1: the front matter should be lines of key: value"),
        ("---\nmodel: x\nmodle: y\n---\nx", "butler.md:3: there is no key modle; did you mean model?"),
        ("---\nmodel: [\n---\nx", "butler.md:3: expected the node content, but found '<stream end>'"),
        ("---\nstop_phrases: stop\n---\nx", "butler.md:2: stop_phrases: should be a valid tuple"),
        ("---\nlanguages: [1]\n---\nx", "butler.md:2: languages: should be a valid string"),
        (
            "---\n\ninterrupt: perhaps\n---\nx",
            "butler.md:3: interrupt: should be a valid boolean, unable to interpret input",
        ),
        ("---\nformat: yaml\n---\nx", "butler.md:2: format: should be 'json' or a valid dictionary"),
        ("---\noptions: {num_ctx: 1}\n---\nx", "butler.md:2: there is no key options.num_ctx"),
        ("---\noptions: {temperature: hot}\n---\nx", "butler.md:2: options.temperature: should be a valid number"),
        ("---\nfiller: {text: x}\n---\nx", "butler.md:2: filler.seconds: Field required"),
        ("---\nwhen: !!int x\n---\nx", "butler.md:1: this is not YAML that can be used"),
        ("x\n{% if %}", "butler.md:2: Expected an expression, got 'end of statement block'"),
        ("---\nmodel: x\n---\nx\n{{ y", "butler.md:5: unexpected end of template, expected 'end of print statement'."),
        ("It is {{ now }}", "butler.md:1: 'now' is undefined"),
        ("{{ lipsum() }}", "butler.md:1: 'lipsum' is undefined"),
        ("{{ agent + 1 }}", 'butler.md:1: TypeError: can only concatenate str (not "int") to str'),
        ("x\n{{ agent | truncate(2) }}", "butler.md:2: AssertionError: expected length >= 3, got 2"),
        ("{{ ''.__class__ }}", "butler.md:1: access to attribute '__class__' of 'str' object is unsafe."),
        ("---\ncontext: '{{ nwo }}'\n---\nx", "butler.md:2: context: there is no nwo here; there are agent, context,"),
        ("---\nmodel: x\ncontext: '{{ now'\n---\nx", "butler.md:3: context: unexpected end of template"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    write(tmp_path, text)
    (found,) = problems(tmp_path)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("---\ncontext: |\n  model: x\n  format: y\nformat: yaml\n---\nx", "butler.md:5: format: should be"),
        ("---\ndescription: >-\n  think: no\nthink: perhaps\n---\nx", "butler.md:4: think: should be"),
        ('---\ndescription: "\n\n  think: no"\nthink: perhaps\n---\nx', "butler.md:5: think: should be"),
        (
            "---\nfiller:\n  text: x\n  seconds: 1\n  options: y\noptions:\n  temperature: hot\n---\nx",
            "butler.md:6: options.",
        ),
        ("---\noptions:\n  stop: [x]\n  temperature: hot\n---\nx", "butler.md:2: options.temperature: should be"),
        ("---\n{model: x,\n 'modle': y}\n---\nmodle: z", "butler.md:3: there is no key modle"),
        ("---\na.b: x\n---\na: z", "butler.md:2: there is no key a.b"),
        ("---\ndescription: |\n  context: z\ncontext: '{{ nwo }}'\n---\nx", "butler.md:4: context: there is no nwo"),
    ],
)
def test_a_line_that_only_looks_like_a_key_is_not_told_of(tmp_path: Path, text: str, problem: str) -> None:
    write(tmp_path, text)
    assert problems(tmp_path)[0].startswith(problem)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "---\nmodle: x\nstream: perhaps\ninterrupt: 7\n---\nx", "one")
    write(tmp_path, "", "two")
    write(tmp_path, "x", "Three")
    (tmp_path / "four.md").write_bytes(b"\xff")
    (tmp_path / "five.md").write_text("x" * 300_000)
    found = problems(tmp_path)
    assert sorted(problem.partition(":")[0].split(" ")[0] for problem in found) == [
        "Three.md", "five.md", "four.md", "one.md", "one.md", "one.md", "two.md",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Butler", "a b", "ü", "x" * 65, "a.b"])
def test_a_file_must_be_named_as_an_agent_can_be(tmp_path: Path, name: str) -> None:
    write(tmp_path, "x", name)
    assert "the name of a prompt file" in problems(tmp_path)[0]


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert problems(tmp_path / "none") == (f"PROMPTS_DIR: {tmp_path}/none cannot be read: No such file or directory",)


YAML = st.text(alphabet="abcdefmodel: \n-[]{}&*!|>'\"#%?,0123", max_size=60) | st.sampled_from(
    [
        "!!timestamp x",
        "!!int ''",
        "!!bool x",
        "a: &a [*a]",
        "format: &a {x: *a}",
        "? [1]\n: 2",
        "a: 2001-13-45",
    ]
)


@given(YAML, st.text(alphabet="{}%# abcfornmi\n'()|.*", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_file_gives_an_agent_or_a_config_error(tmp_path: Path, front: str, body: str) -> None:
    path = tmp_path / "butler.md"
    path.write_text(f"---\n{front}\n---\n{body}")
    assert isinstance(outcome(path), Agent | tuple)


@given(st.binary(max_size=120))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_give_an_agent_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "butler.md"
    path.write_bytes(content)
    assert isinstance(outcome(path), Agent | tuple)


def test_endless_depth_gives_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "butler.md"
    path.write_text(f"---\n{'[' * 500}\n---\nHi")
    assert isinstance(outcome(path), tuple)


def outcome(path: Path) -> Agent | tuple[str, ...]:
    try:
        return read_agent(path)
    except ConfigError as error:
        return error.problems


# ----------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("source", "context", "text"),
    [
        ("plain ", None, "plain"),
        ("{{ context.room }}", None, ""),
        ("{{ context.room.floor }}", {"room": "kitchen"}, ""),
        ("{% for i in context %}word {% endfor %}", "x" * 9999, ("word " * 800).strip()),
        ("{{ context }}", "x" * 9000, "x" * 4000),
    ],
)
def test_facts_are_bounded_and_lenient(source: str, context: Any, text: str) -> None:
    assert templates.render_facts(source, {"context": context}) == text


@pytest.mark.parametrize(
    "source", ["{{ context.x() }}", "{{ 1 / 0 }}", "{{ '' | random }}", "{{ 'xx' | truncate(1) }}"]
)
def test_a_template_that_fails_says_so(source: str) -> None:
    with pytest.raises(templates.TemplateProblem):
        templates.render_facts(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(1001) %}{% endfor %}",
        "{% for i in range(999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
        "{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in x recursive %}{{ loop(x) }}{{ loop(x) }}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(60) }}",
        "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
        "{% set ns = namespace(x='ab') %}{% for i in x %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ x | replace('x', x * 900) }}",
        "{{ x | join(x * 900) }}",
        "{{ x.replace('x', x * 900) }}",
        "{{ (x * 900).join(x) }}",
        "{{ 'x' * 5000000000 }}",
        "{{ 5000000000 * [1] }}",
        "{{ 'x' * 1000 * 1000 * 1000 * 1000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ 'x' | center(width=10000000000) }}",
        "{{ ['x'] | map('center', 10000000000) | list }}",
        "{{ 'x'.center(10000000000) }}",
        "{{ ('x' | attr('zfill'))(10000000000) }}",
        "{{ [1] | batch(10000000000, 'x') | list }}",
        "{{ [1] | slice(10000000000) | list }}",
        "{{ 1 | round(10000000000, 'floor') }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        "{{ 'a\\nb' | indent(10000000000) }}",
        "{{ (1).to_bytes(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%*d' % (10000000000, 1) }}",
        "{{ '%.10000000000f' | format(1.5) }}",
        "{{ '%(n)-10000000000d' | format(n=1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10000000000) }}",
        "{{ '{x:>10000000000}'.format_map({'x': 1}) }}",
    ],
)
def test_no_template_takes_all_the_time_or_memory(source: str) -> None:
    with pytest.raises(templates.TemplateProblem):
        templates.render_once(source, {"x": "x" * 1000})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for key, value in context.items() %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/2 2/2"),
        ("{% for i in range(2, 8, 3) %}{{ i }} {% endfor %}", "2 5"),
        ("{{ '%.1f %% of 2026' | format(context.n) }} {{ '%5.2f' % context.n }}", "20000.0 % of 2026 20000.00"),
        ("{{ '{:.1f} in 2026: {}'.format(context.n, 20000) }}", "20000.0 in 2026: 20000"),
        ("{{ context.get('lux', 20000) * 2 }} {{ 2**10 }}", "40000 1024"),
        (
            "{{ context.no | default(20000) }} {{ 'a_b' | replace('_', ' ') }} {{ 3.14159 | round(2) }}",
            "20000 a b 3.14",
        ),
        ("{% set x %}{{ context.n }}{% endset %}{% if context.n > 5000 %}{{ '-' * 3 }}{{ x }}{% endif %}", "---20000"),
        ("{{ context.s | truncate(2000) | length }} {{ 'x' | center(3) }}", "1500  x"),
    ],
)
def test_what_templates_are_for_is_left(source: str, text: str) -> None:
    templates.check(source)
    assert templates.render_facts(source, {"context": {"n": 20000, "s": "s" * 1500}}) == text


def test_a_template_without_memory_says_so() -> None:
    class Greedy:
        def __str__(self) -> str:
            raise MemoryError

    with pytest.raises(templates.TemplateProblem, match="memory"):
        templates.render_facts("{{ context }}", {"context": Greedy()})
