#!/bin/sh
# On the controller: makes the daemon's SSH key, pins every host's own key, and puts the daemon's public key on every host, where
# it can start mysql-refreshd's agent and nothing else. Uses a login that you have on the hosts already.
set -eu

usage() {
    cat <<'END'
usage: utils/copy-all-keys.sh [OPTIONS] [HOST…]

HOST is [user@]address[:port] (user: the agent's account there, default mysql-refreshd), or ENVIRONMENT/HOST of the
configuration. Without HOST: every host that the configuration reaches by SSH. For each of them, one after the other:

  1. its host key is pinned in known_hosts, after you have said that it is right. A key that changed is always refused.
  2. over your own login there, and sudo if that is not root, the public key comes into the account's authorized_keys, with
     `restrict` and a forced command: whoever has this key can start the agent, and run nothing.
  3. the daemon's key is tried: it must be let in, and it must not be able to run a command.

What is as it should be already stays as it is; a host that fails does not keep the others from being done.

  --login NAME        your login on the hosts (default: what your ssh configuration says, else your own name here)
  --prepare           make the account on the hosts too, and let it start the agent through sudo without a password
                      (utils/remove-sudo-password-prompt.sh --create-user); mysql-refreshd must be installed there already
  --role ROLE         with --prepare: source, destination or both
  --yes               accept host keys that are not known yet, unseen (shown, with a warning)
  --fingerprint FP    accept the host's key only if this is its fingerprint, SHA256:… (with one HOST)
  --check             change nothing: try the daemon's key on every host
  --config FILE       the configuration
  --program FILE      mysql-refreshd, where it is not in PATH
  --path FILE         where mysql-refreshd is on a HOST given as an address (default /usr/local/bin/mysql-refreshd)
  --identity FILE     the daemon's key (default: the configuration's, else /etc/mysql-refreshd/id_ed25519); made if missing
  --known-hosts FILE  (default: the configuration's, else /etc/mysql-refreshd/known_hosts)
  --help              this text

Through sudo, your login on the hosts is made with your own SSH keys and settings, not root's.

Exit code: 0 all hosts are right, 1 some are not, 2 usage.
END
}

me=copy-all-keys
say() { printf '%s\n' "$me: $*"; }
warn() { say "warning: $*" >&2; }
hint() { say "hint: $*" >&2; }
complain() {
    say "error: $1" >&2
    [ $# -lt 2 ] || hint "$2"
}
die() {
    complain "$@"
    exit 1
}
misuse() {
    say "error: $1, see --help" >&2
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

export LC_ALL=C
umask 022
tab=$(printf '\t')
# What the remote script ends with.
CHANGED=90 REFUSED=91
PROBE=this-key-runs-commands
ACCOUNT=mysql-refreshd

# --- what is asked for -----------------------------------------------------------------------------------------------

login='' prepare=no role='' yes=no fingerprint='' check=no config='' program=mysql-refreshd
path=/usr/local/bin/mysql-refreshd identity='' known_hosts='' wanted=''

# Words of shells, ssh's configuration and authorized_keys are made of these: nothing that any of them would take for more.
is_plain_path() {
    case $1 in
        /*[!A-Za-z0-9_./+-]*) return 1 ;;
        /*) ;;
        *) return 1 ;;
    esac
}
is_account() { case $1 in '' | [!A-Za-z_]* | *[!A-Za-z0-9_.-]*) return 1 ;; esac; }
is_address() { case $1 in '' | [!A-Za-z0-9:]* | *[!A-Za-z0-9_.:%-]*) return 1 ;; esac; }
is_port() { case $1 in '' | 0* | *[!0-9]* | ??????*) return 1 ;; esac; }

absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$(pwd)/$1" ;; esac; }

while [ $# -gt 0 ]; do
    case $1 in
        --login | --role | --fingerprint | --config | --program | --path | --identity | --known-hosts)
            [ $# -ge 2 ] || misuse "$1 takes a value"
            case $1 in
                --login) login=$2 ;;
                --role) role=$2 ;;
                --fingerprint) fingerprint=$2 ;;
                --config) config=$2 ;;
                --program) program=$2 ;;
                --path) path=$2 ;;
                --identity) identity=$(absolute "$2") ;;
                --known-hosts) known_hosts=$(absolute "$2") ;;
            esac
            shift
            ;;
        --prepare) prepare=yes ;;
        --yes) yes=yes ;;
        --check) check=yes ;;
        --help | -h)
            usage
            exit
            ;;
        -*) misuse "unknown option $1" ;;
        *[![:graph:]]*) misuse "a host's name has no spaces" ;;
        *) wanted="$wanted$1
" ;;
    esac
    shift
done
case $fingerprint in
    '') ;;
    SHA256:*[!A-Za-z0-9+/]*) misuse "--fingerprint takes SHA256:…, as ssh-keygen -l shows it" ;;
    SHA256:?*)
        case $wanted in
            *'
'?*) misuse "--fingerprint is one host's" ;;
            '') misuse "--fingerprint needs the HOST" ;;
        esac
        ;;
    *) misuse "--fingerprint takes SHA256:…, as ssh-keygen -l shows it" ;;
esac
case $role in '' | source | destination | both) ;; *) misuse "--role is source, destination or both" ;; esac
if [ -n "$role" ] && [ $prepare = no ]; then misuse "--role goes with --prepare"; fi
if [ $check = yes ] && [ "$prepare$yes$fingerprint" != nono ]; then misuse "--check changes nothing, it goes with no --prepare, --yes or --fingerprint"; fi
for file in "$path" "${identity:-/}" "${known_hosts:-/}"; do
    is_plain_path "$file" || misuse "$file: letters, digits and _ . / + - only, please, and absolute for --path"
done
# Through sudo, whoever has called it has the logins.
caller=${SUDO_USER-}
if [ "$(id -u)" -ne 0 ] || [ "$caller" = root ]; then caller=''; fi
own_login=$login
login=${login:-${caller:-$(id -un)}}
is_account "$login" || misuse "--login takes an account's name"
for tool in ssh ssh-keygen ssh-keyscan base64; do
    have $tool || die "there is no $tool here" "run utils/install-dependencies.sh, or install openssh-client and coreutils"
done
prepares=$(dirname "$0")/remove-sudo-password-prompt.sh
if [ $prepare = yes ] && [ ! -r "$prepares" ]; then die "$prepares is not there" "run this from a whole copy of utils/"; fi

# Nothing in it is secret; whoever has called sudo must be able to read it.
work=$(mktemp -d)
chmod 755 "$work"
clean_up() {
    code=$?
    trap '' INT TERM HUP
    rm -rf "$work"
    exit $code
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- which hosts -----------------------------------------------------------------------------------------------------

# Of the configuration: NAME TRANSPORT USER ADDRESS PORT IDENTITY KNOWN_HOSTS AGENT AGENT_PATH, "-" for what is not set.
configured() {
    [ ! -e "$work/configured" ] || return 0
    have "$program" || die "there is no $program here" "install it, or name it with --program, or name the hosts: user@address"
    "$program" ${config:+--config "$config"} config hosts >"$work/configured" ||
        die "the configuration's hosts cannot be told" "mend the configuration, or name the hosts: user@address"
}

# given [user@]address[:port], as a line like the configuration's. IPv6 with a port is [address]:port.
given() {
    user=$ACCOUNT port=- address=$1
    case $address in *@*) user=${address%%@*} address=${address#*@} ;; esac
    case $address in
        '['*']':*) port=${address##*]:} address=${address#?} address=${address%%]*} ;;
        '['*']') address=${address#?} address=${address%]} ;;
        *:*:*) ;;
        *:*) port=${address##*:} address=${address%:*} ;;
    esac
    is_account "$user" || misuse "$1: $user is no account's name"
    is_address "$address" || misuse "$1: is no [user@]address[:port]"
    [ "$port" = - ] || is_port "$port" || misuse "$1: $port is no port"
    printf '%s\tssh\t%s\t%s\t%s\t-\t-\tinstalled\t%s\n' "$1" "$user" "$address" "$port" "$path"
}

list_hosts() {
    if [ -z "$wanted" ]; then
        configured
        cat "$work/configured" >"$work/hosts"
        return
    fi
    : >"$work/hosts"
    printf '%s' "$wanted" >"$work/wanted"
    while read -r one; do
        case $one in
            */*)
                configured
                awk -F '\t' -v name="$one" '$1 == name' "$work/configured" >"$work/found"
                [ -s "$work/found" ] || die "the configuration has no host $one" "its hosts: $(cut -f1 "$work/configured" | tr '\n' ' ')"
                cat "$work/found" >>"$work/hosts"
                ;;
            *) given "$one" >>"$work/hosts" ;;
        esac
    done <"$work/wanted"
}

# --- the daemon's key ------------------------------------------------------------------------------------------------

make_folder() {
    [ -d "$1" ] || mkdir -p "$1" || die "cannot make $1" "run this through sudo, or name a place of your own with --identity and --known-hosts"
}

make_key() {
    make_folder "$(dirname "$1")"
    fresh=$1.new.$$
    rm -f "$fresh" "$fresh.pub"
    ssh-keygen -q -t ed25519 -N '' -C "$ACCOUNT@$(uname -n)" -f "$fresh" ||
        die "cannot make the key $1" "run this through sudo, or name a place of your own with --identity"
    # ln, unlike mv, replaces nothing: a key that another run has just made stays.
    if ln "$fresh" "$1" 2>/dev/null; then
        mv -f "$fresh.pub" "$1.pub"
        say "made the key $1: $(ssh-keygen -lf "$1.pub" | cut -d' ' -f2)"
        # a daemon that is not root must be able to read it
        if [ "$(id -u)" = 0 ] && getent passwd "$ACCOUNT" >/dev/null && [ -d /var/lib/mysql-refreshd/controller ]; then
            chown "$ACCOUNT" "$1"
        fi
    fi
    rm -f "$fresh" "$fresh.pub"
}

# public_key FILE: sets key_type, key_blob, key_comment; makes the key if it is missing.
public_key() {
    if [ ! -e "$1" ]; then
        if [ $check = yes ]; then
            complain "there is no key $1" "run this without --check"
            return 1
        fi
        make_key "$1"
    fi
    if [ ! -r "$1" ]; then
        complain "the key $1 cannot be read" "run this through sudo"
        return 1
    fi
    if [ $check = no ] && [ -n "$(find "$1" -prune -perm /0077)" ]; then
        chmod 0600 "$1"
        warn "$1 was open to others and is not any more; if somebody may have read it, remove it and run this again"
    fi
    # A public half that is not this key's would be put on every host. One with a passphrase cannot be asked.
    line=$(ssh-keygen -y -P '' -f "$1" 2>/dev/null) || line=$(cat "$1.pub" 2>/dev/null) || {
        complain "the key $1 has no public half that can be read" "run: ssh-keygen -y -f $1 >$1.pub"
        return 1
    }
    key_comment=$(cut -d' ' -f3- "$1.pub" 2>/dev/null | head -n 1 | tr -cd 'A-Za-z0-9@._-')
    key_comment=${key_comment:-$ACCOUNT}
    key_type=${line%% *}
    key_blob=${line#* }
    key_blob=${key_blob%% *}
    case $key_type$key_blob in
        *[!A-Za-z0-9+/=@.-]* | '')
            complain "$1 is no SSH key" "remove it, or name another with --identity"
            return 1
            ;;
    esac
}

# --- pinning a host's key --------------------------------------------------------------------------------------------

# ssh as the person whose logins it uses. A key agent is theirs, too.
as_caller() {
    if [ -z "$caller" ]; then "$@"; elif have setpriv; then
        setpriv --reuid="$caller" --regid="$(id -g "$caller")" --init-groups env HOME="$(getent passwd "$caller" | cut -d: -f6)" "$@"
    else sudo -u "$caller" -- env ${SSH_AUTH_SOCK:+"SSH_AUTH_SOCK=$SSH_AUTH_SOCK"} "$@"; fi
}

port_option() { [ "$port" = - ] || printf '%s\n' "-p$port"; }
setting() { sed -n "s/^$1 //p" "$work/settings"; }

# offered: the host's keys as `type blob`, and under which name ssh looks for them: sets pin_name.
offered() {
    scan_host=$address scan_port=$port jump=''
    [ "$scan_port" != - ] || scan_port=22
    pin_name=$address
    if [ "$transport" = openssh ]; then
        # shellcheck disable=SC2046 # an option or nothing
        ssh -G $(port_option) -- "$address" >"$work/settings" 2>/dev/null || return 1
        scan_host=$(setting hostname) scan_port=$(setting port) pin_name=$(setting hostkeyalias)
        jump=$(setting proxyjump)$(setting proxycommand)
        [ "$jump" != none ] || jump=''
    fi
    if [ -z "$pin_name" ] || [ "$pin_name" = "$address" ]; then
        pin_name=$scan_host
        [ "$scan_port" = 22 ] || pin_name="[$scan_host]:$scan_port"
    fi
    : >"$work/offered"
    if [ -n "$jump" ]; then
        # Only ssh knows the way; a login that is meant to fail shows the key.
        # shellcheck disable=SC2046 # an option or nothing
        ssh -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile="$work/offered" -o GlobalKnownHostsFile=/dev/null \
            -o HashKnownHosts=no -o CheckHostIP=no -o UpdateHostKeys=no -o BatchMode=yes -o PreferredAuthentications=none \
            -o ControlPath=none -o ClearAllForwardings=yes -o ConnectTimeout=15 \
            $(port_option) -- "$address" true >/dev/null 2>"$work/trouble" </dev/null || true
    else
        ssh-keyscan -T 15 -t ed25519,ecdsa,rsa -p "$scan_port" -- "$scan_host" >"$work/offered" 2>"$work/trouble" </dev/null || true
    fi
    awk 'NF >= 3 && $1 !~ /^#/ { print $2, $3 }' "$work/offered" >"$work/keys"
    [ -s "$work/keys" ]
}

# known NAME: what known_hosts says of it: `marker type blob`, marker - for none.
known() {
    [ -e "$known_file" ] || return 0
    ssh-keygen -F "$1" -f "$known_file" 2>/dev/null | awk '
        /^#/ { next }
        /^@/ { print $1, $3, $4; next }
        { print "-", $2, $3 }'
}

# Compares the offered keys with the known ones: known, unknown, changed, revoked, authority.
judge() {
    known "$pin_name" >"$work/known"
    awk 'NR == FNR { offered[$1] = offered[$1] " " $2; all[$1 " " $2] = 1; next }
        $1 == "@revoked" { if (($2 " " $3) in all) revoked = 1; next }
        $1 == "@cert-authority" { authority = 1; next }
        { any = 1; if (($2 " " $3) in all) { same = 1; good[$2] = 1 } else if ($2 in offered) other[$2] = 1 }
        END {
            for (type in other) if (!(type in good)) conflict = 1
            if (revoked) print "revoked"
            else if (any && same && !conflict) print "known"
            else if (any) print "changed"
            else if (authority) print "authority"
            else print "unknown"
        }' "$work/keys" "$work/known"
}

# fingerprints: of the offered keys, as ssh-keygen shows them.
fingerprints() {
    while read -r type blob; do
        printf '%s %s\n' "$type" "$blob" | ssh-keygen -lf - 2>/dev/null | awk '{ print "    " $2, $NF }'
    done <"$work/keys"
}

# only_matching FINGERPRINT: leaves the key that has it.
only_matching() {
    : >"$work/matching"
    while read -r type blob; do
        found=$(printf '%s %s\n' "$type" "$blob" | ssh-keygen -lf - 2>/dev/null | awk '{ print $2 }')
        if [ "$found" = "$1" ]; then printf '%s %s\n' "$type" "$blob" >>"$work/matching"; fi
    done <"$work/keys"
    [ -s "$work/matching" ] || return 1
    mv "$work/matching" "$work/keys"
}

mismatch() {
    complain "$pin_name: none of its keys has the fingerprint $1; nothing was pinned" "either this is another host, or somebody stands in between; look at it there"
}

# Whether the offered keys are this host's.
agreed() {
    if [ -n "$fingerprint" ]; then
        only_matching "$fingerprint" || { mismatch "$fingerprint"; return 1; }
        return 0
    fi
    if [ $yes = yes ]; then
        warn "$pin_name: its keys are accepted unseen (--yes); compare them with what the host itself shows"
        return 0
    fi
    if ! (: </dev/tty) 2>/dev/null; then
        complain "$pin_name: its key is not known yet, and there is no terminal to ask on" "give its --fingerprint, or --yes to accept what it shows now"
        return 1
    fi
    cat >/dev/tty <<'END'
Compare with the host's own, on its console or over a way that you trust:
    for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf "$key"; done
END
    while :; do
        printf 'Are these its keys? (yes, no, or paste the fingerprint) ' >/dev/tty
        read -r answer </dev/tty || answer=no
        case $answer in
            yes) return 0 ;;
            no)
                complain "$pin_name: its key was not accepted"
                return 1
                ;;
            SHA256:*)
                only_matching "$answer" && return 0
                mismatch "$answer"
                return 1
                ;;
        esac
    done
}

# Adds the offered keys; the file is always whole.
pin() {
    make_folder "$(dirname "$known_file")"
    target=$(readlink -f "$known_file") || target=$known_file
    fresh=$(mktemp "$target.new.XXXXXX") || die "cannot write $known_file" "run this through sudo, or name a file of your own with --known-hosts"
    if with_pin && ssh-keygen -F "$pin_name" -f "$fresh" >/dev/null 2>&1 && mv -f "$fresh" "$target"; then return 0; fi
    rm -f "$fresh"
    complain "$pin_name: its key could not be added to $known_file" "is the disk full? is that file one of known hosts?"
    return 1
}
with_pin() {
    if [ -e "$target" ]; then
        cp -p "$target" "$fresh" || return 1
        # A last line without an end would swallow the next.
        if [ -n "$(tail -c 1 "$target")" ]; then echo >>"$fresh" || return 1; fi
    else
        chmod 0644 "$fresh" || return 1
    fi
    awk -v name="$pin_name" '{ print name, $0 }' "$work/keys" >>"$fresh"
}

# Sets state_host.
pin_host() {
    state_host=unreachable
    if ! offered; then
        complain "$name: no SSH server answers at $scan_host, port $scan_port"
        sed 's/^/    /' "$work/trouble" >&2
        hint "is the address right, is sshd running there, does a firewall stand in between?"
        return 1
    fi
    case $(judge) in
        known)
            if [ -n "$fingerprint" ] && ! only_matching "$fingerprint"; then
                mismatch "$fingerprint"
                return 1
            fi
            state_host=known
            ;;
        authority) state_host=certified ;;
        revoked)
            state_host=REVOKED
            complain "$name: $known_file says that the key of $pin_name must not be used any more" "somebody has marked it @revoked; the host needs a new one"
            return 1
            ;;
        changed)
            state_host=CHANGED
            complain "$name: THE HOST KEY OF $pin_name HAS CHANGED. Nothing was sent to it. It shows now:"
            fingerprints >&2
            hint "either the host was installed anew, or somebody stands in between. Only if you know that it was: ssh-keygen -R '$pin_name' -f $known_file, then run this again"
            return 1
            ;;
        unknown)
            state_host=refused
            say "$name: the host $pin_name is not known yet. It shows:"
            fingerprints
            agreed || return 1
            pin || return 1
            state_host=pinned
            say "$name: pinned in $known_file"
            ;;
    esac
}

# --- on the host -----------------------------------------------------------------------------------------------------

# Run there as root, or as the account itself. In front of it stand host, account, wanted, blob, prepare (base64, or empty),
# prepare_options, and the numbers.
remote_script() {
    cat <<'SCRIPT'
set -eu
umask 077
say() { printf '%s\n' "  $host: $*"; }
fail() { say "error: $1" >&2; [ $# -lt 2 ] || say "hint: $2" >&2; exit "$REFUSED"; }
changed=no
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

if [ -n "$prepare" ]; then
    told=$(printf %s "$prepare" | base64 -d | sh -s -- $prepare_options 2>&1) && code=0 || code=$?
    printf '%s\n' "$told" | while read -r line; do say "$line"; done
    [ "$code" -eq 0 ] || exit "$REFUSED"
    case $told in *'nothing to change'*) ;; *) changed=yes ;; esac
fi

home=$(getent passwd "$account" | cut -d: -f6)
[ -n "$home" ] || fail "there is no account $account" "run utils/copy-all-keys.sh --prepare, which makes it, or make it yourself"
[ -d "$home" ] || fail "the home $home of $account is not there" "make it: install -d -m 0755 $home"
# A home of root's is good: then the account cannot put another .ssh in place of its own.
if [ "$(id -u)" -eq 0 ] && [ ! -e "$home/.ssh" ] && [ -n "$(find "$home" -prune -uid 0 ! -perm -0020 ! -perm -0002)" ]; then
    mkdir -m 0700 "$home/.ssh"
    chown "$account:" "$home/.ssh"
    changed=yes
fi

# As the account, never as root: what lies in its home is its own, and may be links to anywhere.
keys() {
    cat <<'KEYS'
set -eu
umask 077
cd "$HOME" 2>/dev/null || exit 3
[ -d .ssh ] || mkdir .ssh || exit 4
file=.ssh/authorized_keys
[ ! -L "$file" ] || exit 5
before=''
if [ -e "$file" ]; then before=$(cat "$file") || exit 6; fi
after=$(printf '%s\n' "$before" | awk '
    BEGIN {
        wanted = ENVIRON["WANTED"]
        blob = ENVIRON["BLOB"]
        counts = substr(wanted, 1, index(wanted, blob) + length(blob) - 1)
    }
    # Only the comment behind the key may differ.
    !/^[ \t]*#/ && index($0, blob) { if (!done) print index($0 " ", counts " ") == 1 ? $0 : wanted; done = 1; next }
    NF || NR > 1 { print }
    END { if (!done) print wanted }')
result=0
if [ "$after" != "$before" ]; then
    temporary=$(mktemp .ssh/authorized_keys.XXXXXX 2>/dev/null) || exit 7
    printf '%s\n' "$after" >"$temporary" && mv -f "$temporary" "$file" || { rm -f "$temporary"; exit 7; }
    result=$CHANGED
fi
if [ -O .ssh ] && [ -z "$(find .ssh -prune -perm 0700)" ]; then chmod 0700 .ssh && result=$CHANGED; fi
if [ -O "$file" ] && [ -z "$(find "$file" -prune -perm 0600)" ]; then chmod 0600 "$file" && result=$CHANGED; fi
exit $result
KEYS
}
export WANTED="$wanted" BLOB="$blob" CHANGED HOME="$home"
if [ "$(id -u)" -eq 0 ] && [ "$account" != root ]; then
    su -s /bin/sh "$account" -c "$(keys)" && code=0 || code=$?
else
    sh -c "$(keys)" && code=0 || code=$?
fi
case $code in
    0) say "nothing to change: $account has the key" ;;
    "$CHANGED") changed=yes && say "$account has the key now" ;;
    3) fail "$account cannot enter its home $home" "run: chmod o+x $home" ;;
    4) fail "$account cannot make $home/.ssh" "on the host: install -d -o $account -m 0700 $home/.ssh" ;;
    5) fail "$home/.ssh/authorized_keys is a symlink; it stays as it is" "add the line where it points to, or remove the link" ;;
    6) fail "$account cannot read its $home/.ssh/authorized_keys" "something else keeps that file; let that add the line: $wanted" ;;
    7) fail "$account cannot write into $home/.ssh" "something else keeps that folder; let that add the line: $wanted" ;;
    *) fail "the key could not be put there as $account (code $code)" "is the account expired? on the host: su -s /bin/sh $account -c true" ;;
esac

if [ "$(id -u)" -eq 0 ]; then
    if command -v restorecon >/dev/null 2>&1; then restorecon -R "$home/.ssh" >/dev/null 2>&1 || true; fi
    files=$(sshd -T -C "user=$account,host=localhost,addr=127.0.0.1" 2>/dev/null | sed -n 's/^authorizedkeysfile //p') || files=''
    case " $files " in
        '  ' | *.ssh/authorized_keys*) ;;
        *) say "warning: the SSH server here looks for keys elsewhere: $files" >&2 ;;
    esac
fi
[ "$changed" = no ] || exit "$CHANGED"
SCRIPT
}

# The whole of it as one word in base64: no login shell, whichever it is, sees anything in it.
remote_command() {
    options='restrict'
    if [ "$agent" != uploaded ]; then options="restrict,command=\"$agent_path gate\""; fi
    prepare_text='' prepare_options=''
    if [ $prepare = yes ] && [ "$agent" != uploaded ]; then
        prepare_text=$(base64 <"$prepares" | tr -d '\n')
        prepare_options="--create-user --user $user --path $agent_path${role:+ --role $role}"
    fi
    payload=$({
        printf "host='%s' account='%s' blob='%s' CHANGED=%s REFUSED=%s\n" "$name" "$user" "$key_blob" $CHANGED $REFUSED
        printf "wanted='%s %s %s %s'\n" "$options" "$key_type" "$key_blob" "$key_comment"
        printf "prepare='%s' prepare_options='%s'\n" "$prepare_text" "$prepare_options"
        remote_script
    } | base64 | tr -d '\n')
    # shellcheck disable=SC2016 # for the shell there
    printf '%ssh -c %s\n' "$sudo" "'"'eval "$(echo '"$payload"' | base64 -d)"'"'"
}

# Sets state_key.
install_key() {
    state_key=failed
    terminal=-T sudo='' batch=BatchMode=yes
    if [ -t 0 ]; then batch=BatchMode=no; fi
    # Without --login, what the caller's own ssh configuration says about this host.
    if [ -z "$own_login" ]; then
        # shellcheck disable=SC2046 # an option or nothing
        login=$(as_caller ssh -G $(port_option) -- "$address" 2>/dev/null | sed -n 's/^user //p' | head -n 1)
        is_account "$login" || login=${caller:-$(id -un)}
    fi
    # The account's own login needs nobody's rights but its own.
    if [ "$login" != root ] && { [ "$login" != "$user" ] || [ $prepare = yes ]; }; then
        sudo='sudo -n -- '
        if [ -t 0 ]; then sudo='sudo -- ' terminal=-t; fi
    fi
    # A copy: whoever has called sudo may not see the file itself.
    cat "$known_file" >"$work/known_hosts"
    remote_command >"$work/command"
    # shellcheck disable=SC2046 # an option or nothing
    as_caller ssh $terminal -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$work/known_hosts" \
        -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no -o ControlPath=none -o ClearAllForwardings=yes \
        -o ForwardAgent=no -o RemoteCommand=none -o ConnectTimeout=15 -o ServerAliveInterval=15 -o LogLevel=ERROR -o $batch \
        $(port_option) -l "$login" -- "$address" "$(cat "$work/command")" && code=0 || code=$?
    case $code in
        0) state_key=unchanged ;;
        "$CHANGED") state_key=installed ;;
        "$REFUSED") ;;
        130) exit 130 ;;
        255) complain "$name: no login as $login" "can you log in there by hand? ssh$(port_option | sed 's/^./ &/') $login@$address; another login: --login NAME" ;;
        *)
            if [ "$sudo" = 'sudo -n -- ' ]; then
                complain "$name: sudo did not let $login do it without a password (code $code)" "run this on a terminal, where sudo can ask; or log in as root: --login root"
            else
                complain "$name: it could not be done as $login (code $code), see above"
            fi
            ;;
    esac
    [ $state_key != failed ]
}

# --- trying the daemon's key -----------------------------------------------------------------------------------------

why_not() {
    case $1 in
        *'assphrase'*) echo "the key has a passphrase, and this test cannot give it" ;;
        *'ermission denied'*) echo "on the host, sshd's log says why: sshd's AllowUsers, an expired account, or a home that others may write to" ;;
        *'ost key verification failed'* | *'host key is known'*) echo "pin its key: run this without --check" ;;
        *'efused'* | *'imed out'* | *'oute to host'* | *'resolve'*) echo "is the address right, is sshd running, does a firewall stand in between?" ;;
        *) echo "run: mysql-refreshd doctor $name" ;;
    esac
}

# Sets state_login.
try_login() {
    state_login=failed
    config_option=-F/dev/null
    if [ "$transport" = openssh ]; then config_option=-oLogLevel=INFO; fi
    # shellcheck disable=SC2046 # an option or nothing
    answer=$(ssh -T "$config_option" -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$known_file" \
        -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no -o IdentitiesOnly=yes -o IdentityFile="$key_file" \
        -o IdentityAgent=none -o PreferredAuthentications=publickey -o ControlPath=none -o ClearAllForwardings=yes \
        -o ForwardAgent=no -o RemoteCommand=none -o ConnectTimeout=15 -o ServerAliveInterval=5 \
        $(port_option) -l "$user" -- "$address" "echo $PROBE" 2>"$work/trouble" </dev/null) && code=0 || code=$?
    trouble=$(tr -d '\r' <"$work/trouble" | grep -v '^$' | tail -n 1 || true)
    case $answer in
        *$PROBE*)
            if [ "$agent" = uploaded ]; then
                state_login=ok
                return
            fi
            state_login=UNRESTRICTED
            complain "$name: the daemon's key can run any command as $user there" "another line with this key lets it: look for it in $user's authorized_keys and in the files that 'sshd -T' names on the host"
            return 1
            ;;
    esac
    case $code in
        255)
            if grep -q 'IDENTIFICATION HAS CHANGED' "$work/trouble"; then
                state_login=CHANGED
                complain "$name: the host key of $address has changed" "run this without --check: it tells more"
                return 1
            fi
            complain "$name: the daemon's key is not let in as $user: ${trouble:-no answer}" "$(why_not "$trouble")"
            return 1
            ;;
        126 | 127)
            complain "$name: the key is let in, but $agent_path does not run there${trouble:+: $trouble}" "install it: install -o root -g root -m 0755 mysql-refreshd $agent_path"
            return 1
            ;;
    esac
    state_login=ok
}

# --- all hosts -------------------------------------------------------------------------------------------------------

result() { printf '%s\t%s\t%s\t%s\n' "$name" "$state_host" "$state_key" "$state_login" >>"$work/results"; }

# Whom the transport logs in as when the configuration does not say.
choose_user() {
    user=''
    # shellcheck disable=SC2046 # an option or nothing
    if [ "$transport" = openssh ]; then user=$(ssh -G $(port_option) -- "$address" 2>/dev/null | sed -n 's/^user //p'); fi
    if [ -z "$user" ] || [ "$user" = "$(id -un)" ]; then user=$ACCOUNT; fi
}

one_host() {
    state_host=- state_key=- state_login=-
    key_file=$identity known_file=$known_hosts
    [ -n "$key_file" ] || key_file=$host_identity
    [ "$key_file" != - ] || key_file=/etc/mysql-refreshd/id_ed25519
    [ -n "$known_file" ] || known_file=$host_known_hosts
    [ "$known_file" != - ] || known_file=/etc/mysql-refreshd/known_hosts
    if [ "$user" = - ]; then choose_user; fi
    if ! is_plain_path "$key_file" || ! is_plain_path "$known_file" || ! is_plain_path "$agent_path" ||
        ! is_account "$user" || ! is_address "$address" || [ "$name" != "$(printf %s "$name" | tr -d "'")" ]; then
        complain "$name: a path, account or address with characters that this script does not take" "do this host by hand: utils/README.md tells how"
        return 1
    fi
    public_key "$key_file" || return 1
    if [ $check = no ]; then
        pin_host || return 1
        install_key || return 1
    fi
    try_login
}

list_hosts
failures=0 changes=0 count=0 seen='
'
: >"$work/results"
# Not on stdin: that is the terminal, for ssh and sudo.
while IFS=$tab read -r name transport user address port host_identity host_known_hosts agent agent_path <&3; do
    case $transport in ssh | openssh) ;; *) continue ;; esac
    [ "$agent_path" != - ] || agent_path=$path
    # Two instances of one machine are one login.
    same="$transport $user $address $port $host_identity $host_known_hosts $agent $agent_path"
    case $seen in *"
$same
"*) continue ;; esac
    seen="$seen$same
"
    count=$((count + 1))
    if [ $prepare = yes ] && [ "$agent" = uploaded ]; then
        say "$name: its agent is uploaded, for which sudo is never opened: --prepare does nothing there"
    fi
    one_host || failures=$((failures + 1))
    case $state_host$state_key in *pinned* | *installed*) changes=$((changes + 1)) ;; esac
    result
done 3<"$work/hosts"

if [ $count -eq 0 ]; then
    say "no host of the configuration is reached by SSH"
    exit 0
fi
printf '\n'
awk -F '\t' 'BEGIN { line("HOST", "HOST KEY", "OUR KEY", "LOGIN") } { line($1, $2, $3, $4) }
    function line(a, b, c, d) { printf "%-32s %-12s %-10s %s\n", a, b, c, d }' "$work/results"
printf '\n'
if [ $failures -gt 0 ]; then
    say "$failures of $count hosts are not right, see above" >&2
    exit 1
elif [ $check = yes ]; then
    say "the daemon's key is let in everywhere"
elif [ $changes -eq 0 ]; then
    say "nothing to change"
else
    say "done: $changes of $count hosts changed"
fi
