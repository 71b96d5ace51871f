"""shim"""

Audit = object


def snapshot():
    return None


def audit(before):
    return None
