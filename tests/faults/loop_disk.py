"""Small ext4 file systems on loop devices, to fill, to fail and to cut the power of. Needs root."""

import contextlib
import fcntl
import os
import struct
import subprocess

EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2            # as if the power went: what was not fsynced is gone


@contextlib.contextmanager
def loop_disk(folder, mebibytes, options=()):
    """A mounted ext4 of its own."""
    image, point = folder / "disk.img", folder / "disk"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(mebibytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", *options, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def power_loss(point):
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, EXT4_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def remount(folder):
    subprocess.run(["umount", "-l", folder / "disk"], check=True)
    subprocess.run(["mount", "-o", "loop", folder / "disk.img", folder / "disk"], check=True)


def fill(point, leave=0):
    """Takes all space but `leave` bytes; returns the file that holds it."""
    path = point / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    if leave:
        os.truncate(path, max(0, path.stat().st_size - leave))
    return path
