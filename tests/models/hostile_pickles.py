"""Pickles made to do harm, and what the refusal of each must say."""

import struct
from pathlib import Path

from checkpoint_files import call, entry, number, text

RUNS = "not loaded because reading it would run code"
BROKEN = "damaged or cut off"
# Names that every reader of pickles must keep out of reach, and a call of each.
CALLS = {
    "os.system": ("touch {mark}",),
    "posix.system": ("touch {mark}",),
    "nt.system": ("touch {mark}",),
    "os.popen": ("touch {mark}",),
    "subprocess.Popen": ("touch {mark}",),
    "commands.Popen": ("touch {mark}",),  # what Python writes for it up to protocol 2
    "subprocess.check_output": ("touch {mark}",),
    "builtins.eval": ("open('{mark}', 'w')",),
    "builtins.exec": ("open('{mark}', 'w')",),
    "builtins.compile": ("open('{mark}', 'w')", "x", "exec"),
    "builtins.open": ("{mark}", "w"),
    "builtins.__import__": ("side_effect",),
    "builtins.print": ("x",),
    "builtins.type": ("x",),
    "builtins.setattr": ("x", "y", "z"),
    "builtins.globals": (),
    "__builtin__.eval": ("open('{mark}', 'w')",),
    "builtins.str.format": ("{mark}",),
    "io.open": ("{mark}", "w"),
    "_io.FileIO": ("{mark}", "w"),
    "pathlib.Path.touch": ("{mark}",),
    "shutil.rmtree": ("{mark}",),
    "importlib.import_module": ("side_effect",),
    "runpy.run_module": ("side_effect",),
    "runpy.run_path": ("{mark}",),
    "pickle.loads": ("cos\nsystem\n(S'touch {mark}'\ntR.",),
    "_pickle.loads": ("x",),
    "marshal.loads": ("x",),
    "types.FunctionType": ("x",),
    "types.CodeType": ("x",),
    "operator.attrgetter": ("system",),
    "functools.reduce": ("x", "y"),
    "ctypes.CDLL": ("libc.so.6",),
    "socket.create_connection": ("x",),
    "webbrowser.open": ("x",),
    "timeit.timeit": ("open('{mark}', 'w')",),
    "pdb.run": ("open('{mark}', 'w')",),
    "code.interact": (),
    "logging.config.fileConfig": ("{mark}",),
    "copyreg.add_extension": ("os", "system", "1"),
    "numpy.load": ("{mark}",),
    "numpy.memmap": ("{mark}",),
    "numpy.testing._private.utils.runstring": ("open('{mark}', 'w')", "{{}}"),
    "numpy.f2py.os.system": ("touch {mark}",),
    "torch.load": ("{mark}",),
    "torch.hub.load": ("x", "y"),
    "torch.storage._load_from_bytes": ("x",),
    "torch.serialization.os.system": ("touch {mark}",),
    "torch.utils.cpp_extension.load_inline": ("x",),
    "torch.ops.load_library": ("{mark}",),
    "pip.main": ("install",),
    "side_effect.run": ("x",),
    "side_effect.sub.run": ("x",),
    "collections.OrderedDict.__init__": ("x",),
    "collections.namedtuple": ("x", "y"),
    "re.compile": ("(a+)+$",),
}


def with_call(name: str, arguments: tuple[str, ...], mark: Path) -> bytes:
    return call(name, *(text(part.format(mark=mark)) for part in arguments))


def nested(opener: bytes, closer: bytes, depth: int) -> bytes:
    return opener * depth + closer * depth


DOUBLING = b")" + b"q\x00h\x00\x86" * 60  # a tuple of 2**60 parts in 240 bytes
COLLIDING = 2**61 - 1  # multiples of it have one hash
STACKED = text("os") + text("system") + b"\x93" + text("x") + b"\x85R"
UNKNOWN = b"cgone.project\nThing\n)\x81"
PICKLES: dict[str, tuple[bytes, str]] = {
    "STACK_GLOBAL": (entry(STACKED, protocol=4), RUNS),
    "STACK_GLOBAL of protocol 5": (entry(STACKED, protocol=5), RUNS),
    "INST": (entry(b"(" + text("x") + b"ios\nsystem\n"), RUNS),
    "OBJ": (entry(b"(cos\nsystem\n" + text("x") + b"o"), RUNS),
    "NEWOBJ": (entry(b"cos\nsystem\n" + text("x") + b"\x85\x81"), RUNS),
    "NEWOBJ_EX": (entry(b"cos\nsystem\n)}\x92", protocol=4), RUNS),
    "name alone": (entry(b"cos\nsystem\n"), RUNS),
    "name that the pickle drops": (b"\x80\x02cos\nsystem\n0}.", RUNS),
    "protocol 0 in a dict": (b"(dp0\nVw\np1\ncos\nsystem\np2\n(Vx\ntp3\nRp4\ns.", RUNS),
    "chain of getattr": (
        entry(call("builtins.getattr", call("builtins.getattr", UNKNOWN, text("a")), text("b"))),
        RUNS,
    ),
    "getattr of builtins": (
        entry(call("builtins.getattr", b"cbuiltins\nobject\n", text("__subclasses__"))), RUNS,
    ),
    "call of what getattr gave": (
        entry(call("builtins.getattr", b"cgone\nThing\n", text("x")) + b")R"), RUNS,
    ),
    "partial of a function": (entry(call("functools.partial", b"cos\nsystem\n", text("x"))), RUNS),
    "call of a partial": (
        entry(call("functools.partial", b"cgone\nrun\n", text("x")) + b")R"), RUNS,
    ),
    "call of an object": (entry(UNKNOWN + b")R"), RUNS),
    "rebuild from a type": (
        entry(call("torch._tensor._rebuild_from_type_v2", b"cgone\nrun\n", b"cgone\nThing\n)N")),
        f"{RUNS}|{BROKEN}",
    ),
    "state for a class": (entry(b"ccollections\nOrderedDict\n}" + text("a") + b"Nsb"), BROKEN),
    "state for our own constructor": (
        entry(b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + b"Nsb"), BROKEN,
    ),
    "state for a list": (entry(b"]" + b"}" + text("__class__") + b"Nsb"), BROKEN),
    "slots for an array": (
        entry(
            call("numpy.core.multiarray._reconstruct")
            + b"N}" + text("tensor") + text("x") + text("__class__") + text("x") + b"s\x86b"
        ),
        BROKEN + "|without raw bytes",
    ),
    "__reduce_ex__ in a state": (
        entry(UNKNOWN + b"}" + text("__reduce_ex__") + b"cos\nsystem\nsb"), RUNS,
    ),
    "__setstate__ in a state": (
        entry(UNKNOWN + b"}" + text("__setstate__") + b"cbuiltins\nexec\nsb"), RUNS,
    ),
    "extension code": (entry(b"\x82\x01"), BROKEN),
    "long extension code": (entry(b"\x84\x01\x00\x00\x00"), BROKEN),
    "buffer from outside": (entry(b"\x97", protocol=5), BROKEN),
    "memo of the largest index": (b"\x80\x02}r\xff\xff\xff\xff.", "holds no weights"),
    "memo of an endless index": (b"\x80\x02}p" + b"9" * 4000 + b"\n.", BROKEN),
    "memo whose indices collide": (
        b"\x80\x02}" + b"".join(b"p%d\n" % (i * COLLIDING) for i in range(100_000)) + b".", BROKEN,
    ),
    "absent memo": (b"\x80\x02j\xff\xff\xff\xff.", BROKEN),
    "text of absurd length": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.", BROKEN),
    "bytes of absurd length": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.", BROKEN),
    "bytes of gigabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 6 << 30) + b"x.", BROKEN),
    "bytearray of absurd length": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 63) + b"x.", BROKEN),
    "frame of absurd length": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.", BROKEN),
    "integer of absurd length": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.", BROKEN),
    "integer of negative length": (b"\x80\x02\x8b" + struct.pack("<i", -1) + b"x.", BROKEN),
    "integer of many digits": (b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.", BROKEN),
    "integer of many bytes as key": (
        b"\x80\x02}q\x00" + b"\x8b" + struct.pack("<i", 4_000_000) + b"\x01" * 4_000_000
        + b"q\x010" + b"h\x00h\x01Ns0" * 20_000 + b"h\x00.",
        "holds no weights",
    ),
    "long tuple as key": (
        b"\x80\x02}q\x00(" + b"K\x01" * 500_000 + b"tq\x010" + b"h\x00h\x01Ns0" * 20_000
        + b"h\x00.",
        "holds no weights",
    ),
    "keys that collide": (
        b"\x80\x02}(" + b"".join(number(i * COLLIDING) + b"N" for i in range(100_000)) + b"u.",
        "holds no weights",
    ),
    "lists in lists": (b"\x80\x02" + nested(b"]", b"a", 500_000)[:-1] + b".", "a pickled list"),
    "dicts in dicts": (
        b"\x80\x02" + b"}" + (b"K\x00}" * 300_000) + b"s" * 300_000 + b".", "holds no weights",
    ),
    "tuples in tuples": (entry(b")" + b"\x85" * 600_000), "holds no weights"),
    "objects in objects": (entry(UNKNOWN + b"q\x00cgone\nT\nh\x00\x85\x81" * 50_000), "no weights"),
    "tuple of 2**60 as key": (b"\x80\x02}" + DOUBLING + b"Ns.", "holds no weights"),
    "tuple of 2**60 as value": (entry(DOUBLING), r"holds no weights \(found: w\)"),
    "tuple of 2**60 as argument": (entry(b"cgone\nThing\n" + DOUBLING + b"R"), "no weights"),
    "tuple of 2**60 as array type": (
        entry(
            call("numpy.core.multiarray._reconstruct") + b"(K\x01)" + b"cnumpy\ndtype\n"
            + DOUBLING + b"\x85R" + b"\x89C\x04abcdtb", protocol=3,
        ),
        "w is an array of objects, which are not numbers",
    ),
    "millions of operations": (b"\x80\x02" + b"N0" * 2_000_000 + b"}.", "operations is not read"),
    "a million sets": (b"\x80\x04(" + b"\x8f" * 700_000 + b"l.", "holds a pickled list"),
    "marks without an end": (b"\x80\x02" + b"(" * 900_000 + b".", "holds a pickled object"),
    "text as bytes over and over": (
        b"\x80\x02(c_codecs\nencode\nq\x00" + text("a" * 1_000_000) + b"q\x01"
        + b"h\x00h\x01\x85R" * 100_000 + b"l.",
        "a pickled list",
    ),
    "table made over and over": (
        b"\x80\x02(ccollections\nOrderedDict\nq\x00](" + (b"](" + text("k") + b"Ne") * 50_000
        + b"eq\x01" + b"h\x00h\x01\x85R" * 20_000 + b"l.",
        "a pickled list",
    ),
    "arguments over and over": (
        b"\x80\x02(" + b"N" * 500_000 + b"tq\x00(cnumpy.core.multiarray\n_reconstruct\nq\x01"
        + b"h\x01h\x00R" * 50_000 + b"l.",
        BROKEN,
    ),
    "class of an old object over and over": (
        b"\x80\x02(cgone\nThing\n" + b"N" * 500_000 + b"tq\x00(ccopyreg\n_reconstructor\nq\x01"
        + b"h\x01h\x00R" * 50_000 + b"l.",
        BROKEN,
    ),
    "name over and over": (
        b"\x80\x04(" + text("a" * 2_000_000) + b"q\x00" + b"h\x00h\x00\x93" * 100_000 + b"l.",
        BROKEN,
    ),
    "wrappers around one dict": (
        b"\x80\x02}q\x00(" + b"".join(text(name) + b"h\x00" for name in ("model", "net", "ema",
        "state_dict", "module", "params", "weights", "network", "model_ema", "model_state"))
        + b"".join(number(i) + b"N" for i in range(200_000)) + b"u.",
        "holds no weights",
    ),
    "text of many words": (entry(b"N", key="a " * 10_000_000), r"holds no weights"),
    "name of many words": (b"\x80\x02c" + b"a " * 5_000_000 + b"\nThing\n.", BROKEN),
}  # fmt: skip
ARRAY = call("numpy.core.multiarray._reconstruct")
F4 = call("numpy.dtype", text("f4"), number(0), number(1))
PICKLES |= {
    f"array of {name}": (entry(ARRAY + state + b"b", protocol=3), sentence)
    for name, state, sentence in (
        ("no state", b"N", "without raw bytes"),
        ("negative shape", b"(K\x01" + number(-1) + b"\x85" + F4 + b"\x89C\x04abcdt", BROKEN),
        ("absurd shape", b"(K\x01" + number(1 << 62) + b"\x85" + F4 + b"\x89C\x04abcdt", BROKEN),
        ("nested shape", b"(K\x01))\x86" + F4 + b"\x89C\x04abcdt", BROKEN),
        ("many dimensions", b"(K\x01(" + b"K\x01" * 90_000 + b"t" + F4 + b"\x89C\x04abcdt", BROKEN),
        ("half a number", b"(K\x01K\x01\x85" + F4 + b"\x89C\x03abct", BROKEN),
        (
            "objects",
            b"(K\x01K\x01\x85" + F4.replace(b"f4", b"O8") + b"\x89C\x08abcdefght",
            "not num",
        ),
        ("a list of objects", b"(K\x01K\x01\x85" + F4 + b"\x89](cos\nsystem\neNt", RUNS),
    )
}
