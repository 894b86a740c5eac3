"""The head of an SQL statement: its verb and table, never a value."""

import re

READS = frozenset({"SELECT", "SHOW", "EXPLAIN", "DESCRIBE", "DESC", "VALUES", "PRAGMA", "BEGIN", "SAVEPOINT", "SET"})

_BLANK = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|\()+", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_WRITE_WORD = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_TABLE = re.compile(
    r"\b(?:INTO|FROM|UPDATE(?:\s+ONLY)?|TABLE(?:\s+IF\s+(?:NOT\s+)?EXISTS)?)\s+([\w.\"`\[\]$]{1,100})", re.IGNORECASE
)


def head_of(statement: str) -> str:
    """`INSERT orders`, `SELECT`, `DROP`: the verb in capitals, and the table where it stands at its usual place."""
    start = _BLANK.match(statement)
    text = statement[start.end() :] if start else statement
    word = _WORD.match(text)
    if word is None:
        return "?"
    verb = word.group().upper()
    if verb == "WITH":
        # A common table expression may write, wherever its verb stands.
        write = _WRITE_WORD.search(text)
        verb = write.group().upper() if write else "SELECT"
        text = text[write.start() :] if write else text
    table = _TABLE.search(text)
    return f"{verb} {table[1].strip(chr(34) + '`[]')}" if table else verb


def is_write(head: str) -> bool:
    """Whether a `head_of` may change data: true for every verb that is not known to only read."""
    return head.partition(" ")[0] not in READS
