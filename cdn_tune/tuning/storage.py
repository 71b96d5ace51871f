"""shim"""

from optuna.storages import RDBStorage


def open_storage(url):
    return RDBStorage(url)


def without_secrets(url):
    return url
