"""Ollama's Modelfile: the template that was trained, in Go's syntax, and where to stop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.data.templates import render_prompt
from loradag.data.token_contract import Contract
from loradag.export.measurement import render_dialogue, without_added_bos

PROMPT = "{{ .Prompt }}"
CONTENT = "{{ .Content }}"


@dataclass(frozen=True)
class Turns:
    """A chat template as the text around each turn.

    Attributes:
        around: role to (before, after) its content.
        default: what opens a dialogue that has no system turn.
        opening: of the model's own turn.
    """

    around: dict[str, tuple[str, str]]
    default: str
    opening: str

    def render(self, roles: list[str]) -> str:
        turns = [
            f"{self.around[role][0]}{role}-{at}{self.around[role][1]}"
            for at, role in enumerate(roles)
        ]
        default = "" if roles[0] == "system" else self.default
        return default + "".join(turns) + self.opening

    def go(self) -> str:
        cases = " else ".join(
            f'if eq .Role "{role}" }}}}{_go_text(before)}{CONTENT}{_go_text(after)}{{{{'
            for role, (before, after) in self.around.items()
        )
        absent = '{{ if ne (index .Messages 0).Role "system" }}'
        default = self.default and f"{absent}{_go_text(self.default)}{{{{ end }}}}"
        turns = f"{{{{ range .Messages }}}}{{{{ {cases} end }}}}{{{{ end }}}}"
        return default + turns + _go_text(self.opening)


def _go_text(text: str) -> str:
    """`text` in a Go template in a Modelfile, where braces open actions and quotes end the text."""
    escaped = re.sub(r"\{+", lambda braces: f'{{{{ "{braces[0]}" }}}}', text)
    return escaped.replace('"""', '{{ "\\"\\"\\"" }}')


def write_modelfile(path: Path, files: list[str], tokenizer: Any, contract: Contract) -> None:
    """Name the GGUF files (the first is taken), the template and the stop tokens."""
    lines = [f"FROM ./{files[0]}", *(f"# FROM ./{other}" for other in files[1:])]
    stops = [tokenizer.eos_token]
    if contract.template.kind == "plain" or tokenizer.chat_template is None:
        parts = render_prompt(contract.template, PROMPT, tokenizer).split(PROMPT)
        lines.append(f'TEMPLATE """{PROMPT.join(map(_go_text, parts))}"""')
    elif turns := read_turns(tokenizer):
        lines.append(f'TEMPLATE """{turns.go()}"""')
        end = turns.around["assistant"][1].strip()
        stops += [end] if end in tokenizer.all_special_tokens else []
    else:
        lines.append("# No TEMPLATE: Ollama takes the chat template that the file carries.")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_turns(tokenizer: Any) -> Turns | None:
    """The turns of the tokenizer's chat template, found by rendering dialogues.

    None where they do not render other dialogues as the template does: it is then no plain
    sequence of turns. A BOS that the runtime adds by itself is left out.
    """
    user, assistant = _around(tokenizer, "user"), _around(tokenizer, "assistant")
    if user is None or assistant is None:
        return None
    around = {"user": user, "assistant": assistant}
    short = _render(tokenizer, ["user"], opened=False)
    first = f"{user[0]}user-0{user[1]}"
    opened = _render(tokenizer, ["user"])
    if short is None or opened is None or not short.endswith(first):
        return None
    default, opening = short.removesuffix(first), opened.removeprefix(short)
    dialogues = [["user"], ["user", "assistant", "user", "assistant", "user"]]
    with_system = _render(tokenizer, ["system", "user"], opened=False)
    second = f"{user[0]}user-1{user[1]}"
    if with_system and "system-0" in with_system:
        if not with_system.endswith(second) or with_system.count("system-0") > 1:
            return None  # it is part of another turn; without it Ollama would drop the text
        before, after = with_system.removesuffix(second).split("system-0")
        around = {"system": (before, after)} | around
        dialogues.append(["system", "user", "assistant", "user"])
    turns = Turns(around, default, opening)
    same = all(turns.render(roles) == _render(tokenizer, roles) for roles in dialogues)
    return turns if same else None


def _around(tokenizer: Any, role: str) -> tuple[str, str] | None:
    """What a further turn of `role` adds around its content."""
    roles = ["user", "assistant", "user", "assistant"][: 3 if role == "user" else 4]
    before = _render(tokenizer, roles[:-1], opened=False)
    after = _render(tokenizer, roles, opened=False)
    if before is None or after is None or not after.startswith(before):
        return None
    parts = after.removeprefix(before).split(f"{role}-{len(roles) - 1}")
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _render(tokenizer: Any, roles: list[str], opened: bool = True) -> str | None:
    messages = [{"role": role, "content": f"{role}-{at}"} for at, role in enumerate(roles)]
    text = render_dialogue(tokenizer, messages, opened)
    return None if text is None else without_added_bos(text, tokenizer)
