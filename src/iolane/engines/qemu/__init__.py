"""The engine `qemu`: machines run by QEMU, their devices carried by vfio-user."""
