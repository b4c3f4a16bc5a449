# Runs iolane-device@.service under a systemd of its own, in namespaces of its own (unshare -m -p -f --mount-proc),
# and says what became of it, a line each.
#
# usage: sh service_under_systemd.sh SYSTEMD HOME
#
# HOME holds .config/systemd/user/iolane-device@.service and the configurations of `web`, which can be served,
# and `bad`, which can't.
systemd=$1
export HOME=$2 XDG_RUNTIME_DIR=/run/user
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && mkdir -m 700 /run/user || { echo "no namespace"; exit; }
timeout 150 "$systemd" --user --log-target=console >"$HOME/systemd.log" 2>&1 &

control() { timeout 60 systemctl --user "$@"; }
shown() { control show -p "$1" --value iolane-device@web; }
until_true() { # at most a minute
    for _ in $(seq 120); do "$@" && return; sleep 0.5; done
    echo "never: $*"
    exit
}
answers() { control list-units >/dev/null 2>&1; }
restarted() { [ "$(shown NRestarts)" -ge "$1" ] && [ "$(shown ActiveState)" = active ]; }

until_true answers
send() { # to the service's process; `kill 0` would be to all of ours
    process=$(shown MainPID)
    [ "${process:-0}" -gt 1 ] && kill "$1" "$process"
}

control start iolane-device@web || exit
echo "started: $(shown StatusText)"
send -KILL
until_true restarted 1
echo "killed: $(shown StatusText)"
send -STOP
until_true restarted 2
echo "hung: $(shown StatusText)"
control stop iolane-device@web
echo "stopped: $(shown ActiveState) $(shown Result)"
control start iolane-device@bad 2>/dev/null || echo "bad: refused"
