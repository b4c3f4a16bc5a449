"""The engine `uml`: User Mode Linux, a guest that is a process and boots in a second. Its devices are virtio
devices carried by vhost-user.
"""
