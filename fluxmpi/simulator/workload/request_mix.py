"""Request mixes: the weights of requests and operations, over few hot keys and many cold ones.

hot.a, hot.b, hot.c      written by all clients, so commits conflict
wide.k0 … wide.k79       a directory of many nodes
d0.…, d1.…, d2.e.…       directories that are emptied, removed, copied and replace values
l0, l1, d0.l             links that change their targets: directories, values, each other, missing keys
count.a, count.b         counters that all clients add to, alone and combined
cell.a                   exchanged and swapped
hot.a.x                  a key below a value: such a commit must fail
"""

from __future__ import annotations

HOT = ("hot.a", "hot.b", "hot.c")
COUNTS = ("count.a", "count.b")
CELL = "cell.a"
HUGE = (1 << 63) - 20
"""Added twice, it exceeds 64 bits."""

DIRECTORIES = ("d0", "d1", "d2.e", "d2", "wide", "hot", "log")
LINKS = ("l0", "l1", "d0.l")
LINK_TARGETS = ("hot", "hot.a", "d1", "d2.e", "l0", "l1", "d0", "nowhere", "hot.a.x", "wide.k1")
LINKED_KEYS = ("l0.a", "l0.k1", "l1.k0", "l1.a", "d0.l.k1", "l0", "l1")
COPIES = ("copy0", "copy1", "d1.copy")
PATTERNS = (
    *("**", "hot.*", "*.k1*", "wide.k?", "wide.k[1-3]*", "d?.**", "**.k2", "d1.**.k3", "l?", "l0.*", "d0.l.k*"),
    *("*", "log.[!1]", "hot.**.x", "nowhere.*", "**.new", "copy*.*", "hot.a"),
)
TOPICS = ("run.", "run.ready", "log.", "")

Weights = dict[str, int]

TRANSACTIONS: Weights = {"add": 12}
ATOMIC: Weights = {"count": 8, "exchange": 5, "swap": 8, "atomic": 4}
"""Added to any mix of a plan with ``transactions``."""

MIXES: dict[str, Weights] = {
    "everything": {
        "commit": 40,
        "get": 20,
        "get_at": 6,
        "list": 5,
        "getroot": 3,
        "fresh": 3,
        "getroot_at": 2,
        "watch": 4,
        "cancel": 2,
        "progress": 2,
        "publish": 5,
        "subscribe": 2,
        "unsubscribe": 1,
        "store": 5,
        "load": 2,
        "map": 3,
        "dropcache": 1,
        "ping": 1,
        "run": 1,
        "status": 1,
        "resend": 3,
        "move": 2,
        "save": 1,
        "restore": 1,
    },
    "hot": {"commit": 70, "get": 20, "watch": 3, "resend": 6, "move": 3, "fresh": 3},
    "fresh": {
        "commit": 50,
        "get": 20,
        "fresh": 12,
        "get_fresh": 24,
        "use_known_version": 6,
        "watch": 4,
        "cancel": 1,
        "resend": 6,
        "move": 6,
    },
    "snapshots": {
        "commit": 50,
        "get_at": 50,
        "get": 5,
        "list": 5,
        "getroot_at": 5,
        "fresh": 5,
        "use_known_version": 10,
        "move": 3,
        "collect": 5,
        "dropcache": 10,
    },
    "watched": {
        "commit": 60,
        "watch": 10,
        "progress": 2,
        "cancel": 2,
        "get": 5,
        "dropcache": 2,
        "move": 1,
        "resend": 3,
    },
    "watchers": {
        "commit": 50,
        "watch": 10,
        "progress": 4,
        "cancel": 4,
        "dropcache": 2,
        "move": 1,
        "publish": 10,
        "subscribe": 4,
    },
    "links": {"commit": 50, "get": 20, "watch": 8, "progress": 2, "list": 4, "dropcache": 3},
    "directories": {
        "commit": 50,
        "get": 15,
        "list": 10,
        "watch": 6,
        "get_at": 10,
        "store": 5,
        "map": 5,
        "dropcache": 2,
    },
}

OPS: dict[str, Weights] = {
    "everything": {
        "hot": 20,
        "cold": 30,
        "append": 12,
        "unlink": 6,
        "rmdir": 3,
        "mkdir": 4,
        "link": 4,
        "through": 5,
        "long": 4,
        "stored": 5,
        "copy": 3,
        "below": 2,
        "bogus": 1,
        "bulk": 0,
    },
    "hot": {"hot": 70, "append": 20, "below": 4, "cold": 20},
    "fresh": {"hot": 50, "append": 15, "unlink": 8, "below": 3, "cold": 15, "count": 8, "exchange": 5, "swap": 6},
    "snapshots": {"hot": 50, "append": 10, "unlink": 8, "cold": 15},
    "watched": {"hot": 30, "append": 5, "unlink": 12, "cold": 30},
    "watchers": {"hot": 20, "cold": 20, "append": 5, "unlink": 8, "rmdir": 4, "mkdir": 2, "long": 5, "copy": 4},
    "links": {"hot": 15, "cold": 10, "link": 15, "through": 20, "unlink": 6, "rmdir": 3, "mkdir": 2, "append": 5},
    "directories": {
        "cold": 40,
        "unlink": 10,
        "rmdir": 5,
        "mkdir": 5,
        "copy": 5,
        "below": 3,
        "stored": 5,
        "append": 5,
        "bulk": 0,
    },
}
