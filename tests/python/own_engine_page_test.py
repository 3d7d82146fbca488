# SPDX-License-Identifier: MIT
"""What docs/bring-your-own-engine.md and README.md show of an engine of one's own comes out, command after command, and what
the page quotes is said.

    own_engine_page_test.py --write     puts into the pages what comes out now
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/recordings"))
import numpy_engine  # noqa: E402
import numpy  # noqa: E402

PAGE, README = ROOT / "docs/bring-your-own-engine.md", ROOT / "README.md"
EXAMPLE = ROOT / "docs/examples/own_engine/engine.py"
RANDOM = numpy.random.default_rng(3).integers(0, 512, 200).tolist()
HERE = "..."  # the folder that commands run in, as the pages have it
BLOCK = re.compile(r"(?<=<!-- own engine: run -->\n).*?(?=<!-- end of own engine -->)", re.DOTALL)
COMMAND = re.compile(r"^\$ (?P<command>.*)\n(?P<shown>(?:(?!```|\$ ).*\n)*)", re.MULTILINE)


def run(folder, words):
    program = {"moe-diag": os.environ["MOE_DIAG_EXE"], "python3": sys.executable}[words[0]]
    return subprocess.run([program, *words[1:]], cwd=folder, capture_output=True, text=True)


def part(output, shown):
    """All of an output, or the paragraph of it that begins as what is shown."""
    lines, first = output.splitlines(), shown.partition("\n")[0]
    if first not in lines or lines[0].split()[0] == first.split()[0]:
        return output
    begin = lines.index(first)
    return "\n".join(lines[begin : lines.index("", begin)]) + "\n"


def without_machine(text):
    """Times and rates differ between machines, and so do the last bits of an engine's values and all that follows from them."""
    for pattern, instead in (
        (r"^(time|tiny.gguf:) .*", r"\1"),
        (r"[0-9]+ threads?, [a-z0-9]+", "THREADS"),
        (r"-?[0-9]+\.[0-9]+(e[+-][0-9]+)?|\b[0-9]+e[+-][0-9]+", "#"),
        (r"^((held|falsified) .*), prompt .*|^((held|falsified) .*) prompt .*", r"\1\3"),  # the worst place
        (r"(worst #) at position [0-9]+", r"\1"),
        (r"^( +[0-9]+ +#) +[a-z_]+ ", r"\1"),  # the worst step of a layer
        (r" +", " "),
    ):
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text


class Folder:
    """A place where a page's commands run."""

    def __init__(self):
        self.temporary, self.outputs = tempfile.TemporaryDirectory(), {}
        self.path = pathlib.Path(self.temporary.name).resolve()
        shutil.copytree(EXAMPLE.parent, self.path / "docs/examples/own_engine")

    def __del__(self):
        self.temporary.cleanup()

    def output(self, command):
        """What a command prints; one that was run before prints the same."""
        words = tuple(command.partition(" #")[0].split())
        if words not in self.outputs:
            finished = run(self.path, words)
            self.outputs[words] = (finished.stdout + finished.stderr).replace(str(self.path), HERE)
        return self.outputs[words]


def written(page, folder):
    """The page with what comes out now."""

    def block(match):
        return COMMAND.sub(command, match[0])

    def command(match):
        output = folder.output(match["command"])
        return f"$ {match['command']}\n" + (part(output, match["shown"]) if output else "")

    return BLOCK.sub(block, page.read_text())


class Page(unittest.TestCase):
    def test_commands_print_what_the_pages_show(self):
        folder = Folder()
        for page, commands in ((README, 3), (PAGE, 9)):
            text = page.read_text()
            found = [match for block in BLOCK.findall(text) for match in COMMAND.finditer(block)]
            self.assertEqual(len(found), commands, page)
            for match in found:
                output = folder.output(match["command"])
                expected = part(output, match["shown"]) if output else ""
                self.assertEqual(without_machine(match["shown"].rstrip("\n")), without_machine(expected.rstrip("\n")))

    def test_no_page_shows_a_command_that_broke(self):
        for page in (README, PAGE):
            self.assertNotIn("Traceback", page.read_text())

    def test_code_is_that_of_the_example(self):
        shown = re.findall(r"<!-- example: (.*?) -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
        self.assertEqual([name for name, _ in shown], [*["own_engine/engine.py"] * 2, "record/engine.py", "record/engine.c"])
        for name, code in shown:
            self.assertIn(code, (ROOT / "docs/examples" / name).read_text())


class Quoted(unittest.TestCase):
    """Messages in the page's tables and lists, each from a recording that has what it speaks of."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Folder()
        cls.tool("moe-diag synth tiny.gguf --seed 7", 0)
        numpy_engine.run(cls.folder.path / "tiny.gguf", [RANDOM[:20]], out=cls.folder.path / "sound")

    @classmethod
    def tearDownClass(cls):
        del cls.folder

    @classmethod
    def tool(cls, command, code):
        finished = run(cls.folder.path, command.split())
        assert finished.returncode == code, (command, finished.returncode, finished.stdout, finished.stderr)
        return finished.stdout + finished.stderr

    def judged(self, code, *options, change=None, quoted=(), model="tiny.gguf", dump="sound"):
        """Judges a copy of a dump that `change` was made to: the exit code is `code`, and what is quoted is said."""
        copy = self.folder.path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder.path / dump, copy)
        if change:
            change(copy)
        output = self.tool(f"moe-diag judge {model} copy {' '.join(options)} --overwrite", code)
        for text in quoted:
            self.assertIn(text, PAGE.read_text())
            self.assertIn(text.removeprefix("... "), output)
        return output

    def engine(self, dump, numerics="f32", recorded="all", fault=None, *, model="tiny.gguf", tokens=64, **more):
        """Records the engine of the tests."""
        at, layer = self.folder.path, 2 if fault else None
        numpy_engine.run(at / model, [RANDOM[:tokens]], numerics, recorded, fault, layer, at / dump, **more)

    def test_names_exchanged(self):
        def exchange(dump):
            for layer in layers(dump):
                (layer / "moe_expert_gate.npy").rename(layer / "x")
                (layer / "moe_expert_up.npy").rename(layer / "moe_expert_gate.npy")
                (layer / "x").rename(layer / "moe_expert_up.npy")

        def layers(dump):
            return sorted(dump.glob("layer_*"))[:count]

        count = 4
        text = "at every layer moe_expert_gate, moe_expert_up are not what the step gives, nor what the next steps read"
        self.judged(2, change=exchange, quoted=[text])
        count = 1
        self.assertIn("the recording is wrong there, not the engine", self.judged(1, change=exchange))

    def test_other_numerics_and_weights(self):
        text = "... the engine computes in other numerics than said; what fits is f32"
        self.judged(2, "--numerics", "bf16", quoted=[text])
        self.tool("moe-diag synth other.gguf --seed 7 --quant q8_0 --router-scale 1.1", 0)  # all matrices, and no norm
        self.engine("other", model="other.gguf")
        text = "every product is off, and nothing else: the engine multiplied other weights than this file has"
        self.judged(2, dump="other", quoted=[text])
        self.tool("moe-diag synth deep.gguf --seed 7 --layers 6", 0)
        self.engine("deep", model="deep.gguf")
        self.judged(2, dump="deep", quoted=["layer 4: the model has layers 0 to 3"])

    def test_rows(self):
        def set_rows(stage, rows, value):
            def change(dump):
                array = numpy.load(dump / f"layer_01/{stage}.npy", mmap_mode="r+")
                array[rows] = value
                array.flush()

            return change

        everything, ids = slice(None), "moe_router_indices"
        self.judged(2, change=set_rows("ffn_norm", everything, 0), quoted=["every row that was looked at is 0"])
        text = "row 19 of call 0, its last, is 0 and the first is not: padding?"
        self.judged(2, change=set_rows("ffn_norm", slice(15, 20), 0), quoted=[text])
        self.judged(2, change=set_rows(ids, everything, 0), quoted=["every id is 0"])
        self.judged(2, change=set_rows(ids, 3, 12), quoted=["expected 0 to 11"])
        self.judged(2, change=set_rows(ids, 3, 5), quoted=["expected each once"])

    def test_cut(self):
        def cut(dump):
            info = dump / "dump.json"
            info.write_text(info.read_text().replace('"closed": true', '"closed": false'))

        self.judged(2, change=cut, quoted=["the dump was cut"])
        self.judged(0, "--cut-ok", change=cut)

    def test_rows_that_are_missing(self):
        self.engine("last", head="last")
        self.judged(0, dump="last")

    def test_what_bf16_shows(self):
        self.engine("sound16", "bf16", "layers")
        text = "post_ffn_residual is said to be kept in f16, and its recorded values have the bits of bf16"
        self.judged(2, "--stored", "f16", dump="sound16", quoted=[text])
        self.judged(0, dump="sound16")

        def silent(dump):
            info = dump / "dump.json"
            info.write_text(re.sub(r'"numerics": "[^"]*", *', "", info.read_text()))

        self.judged(2, dump="sound16", change=silent, quoted=["nothing tells the numerics of the engine"])
        for fault, text in (("expert5", r"expert 1's part of the update is 5 % too large in columns 0 to 63 of 256"), ("swap", r"a step from layer 1, post_ffn_residual")):
            self.engine(fault, "bf16", "layers", fault)
            self.assertRegex(self.judged(1, dump=fault), text)
        self.engine("moe", "bf16", "moe", "expert5")
        self.assertRegex(self.judged(1, dump="moe"), r"scale: multiplied by 1.0500[0-9]*\n(.*\n)*.* expert 1 only.*columns 0 to 63")

    def test_contract_that_is_kept(self):
        at = self.folder.path
        self.tool("moe-diag judge tiny.gguf sound --contract kept.yaml", 0)
        text = (at / "kept.yaml").read_text()
        for path, instead in ((at / "tiny.gguf", "tiny.gguf"), (at / "sound", "sound")):
            self.assertIn(f'"{path}"', text)
            text = text.replace(str(path), instead)
        (at / "kept.yaml").write_text(text.replace('replay: "sound"', 'replay: "sound", require: [moe_router_indices, layer_output]'))
        self.tool("moe-diag run kept.yaml --out out --junit judge.xml", 0)
        self.engine("sparse", recorded="layers_only")
        shutil.move(at / "sound", at / "moved")
        shutil.move(at / "sparse", at / "sound")
        self.assertIn("has no moe_router_indices", self.tool("moe-diag run kept.yaml --out out --overwrite", 2))
        shutil.rmtree(at / "sound")
        self.tool("moe-diag run kept.yaml --out out --overwrite", 3)
        shutil.move(at / "moved", at / "sound")

    def test_open_choices(self):
        self.engine("open", "bf16", "layers_only", tokens=100)
        text = "samples were not judged: rounding may have chosen other experts in their rows, and the choice is not recorded; record moe_router_indices"
        self.judged(0, dump="open", quoted=[text])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        at = Folder()
        for path in (README, PAGE):
            path.write_text(written(path, at))
    else:
        unittest.main()
