#!/bin/sh
# A host with its own libvirtd, in namespaces that it is the first process of: all of it ends with it.
# usage: host.sh FOLDER NAME UUID [TREE below|above]: FOLDER is the host's own /run, /var/lib, /var/log and /etc; TREE
# holds unpacked packages: below what this machine has in /usr, of the same release; or above it, of a later one.
set -e
folder=$1 name=$2 uuid=$3 tree=$4 order=$5
mount --make-rprivate /
mkdir -p "$folder/run" "$folder/lib" "$folder/log" "$folder/cache" "$folder/etc" "$folder/work"
case $order in
below)
    for part in lib sbin bin; do
        mount -t overlay -o "lowerdir=/usr/$part:$tree/$part:$tree/usr/$part" overlay "/usr/$part"
    done
    [ ! -d "$tree/usr/libexec" ] || mount -t overlay -o "lowerdir=/usr/libexec:$tree/usr/libexec" overlay /usr/libexec
    mount -t overlay -o "lowerdir=/usr/share:$tree/usr/share" overlay /usr/share
    ;;
above)
    mount -t overlay -o "lowerdir=$tree/usr:/usr" overlay /usr
    ;;
esac
mount -t overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/work" overlay /etc
mount --bind "$folder/run" /run
mount --bind "$folder/lib" /var/lib
mount --bind "$folder/log" /var/log
mount --bind "$folder/cache" /var/cache
mount -t sysfs sysfs /sys 2>/dev/null || true
hostname "$name"
ip link set lo up
grep -q '^libvirt-qemu:' /etc/passwd || echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin' >>/etc/passwd
grep -q '^libvirt-qemu:' /etc/group || echo 'libvirt-qemu:x:64055:' >>/etc/group
mkdir -p /etc/libvirt/hooks /run/libvirt /run/lock /var/log/libvirt
cat >/etc/libvirt/qemu.conf <<END
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
cat >/etc/libvirt/libvirtd.conf <<END
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
host_uuid = "$uuid"
END
[ ! -e "$folder/hook" ] || { mkdir -p /etc/libvirt/hooks/qemu.d && cp -p "$folder/hook" /etc/libvirt/hooks/qemu.d/iolane; }
libvirtd -p /run/libvirtd.pid &
daemon=$!
trap 'kill $daemon; wait $daemon; exit 0' TERM
echo ready >"$folder/started"
wait $daemon
