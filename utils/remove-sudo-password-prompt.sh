#!/bin/sh
# On a host: lets one account start mysql-refreshd's agent through sudo without a password, and nothing else.
# Writes one sudoers drop-in, which visudo has checked, and only for a program that nobody but root can have put there.
set -eu

usage() {
    cat <<'END'
usage: sudo utils/remove-sudo-password-prompt.sh [OPTIONS]

Writes /etc/sudoers.d/mysql-refreshd: the account may run `PATH agent --role source` and `PATH agent --role destination` as
root without a password. Never anything else, never ALL. Run it again at will: what is as it should be stays as it is.

  --user NAME    the account (default mysql-refreshd)
  --path FILE    the installed program (default /usr/local/bin/mysql-refreshd)
  --role ROLE    source, destination or both (default: what the drop-in already allows this account, else both)
  --create-user  make the account if it is missing: a system account with /bin/sh and no password
  --remove       take the drop-in away again; the account stays
  --check        change nothing; exit 0 if the account can start the agent without a password, 1 if not
  --dry-run      change nothing; print the drop-in
  --help         this text

Refused: a program, or a folder above it, that is not root's or that its group or others may write to. sudo's configuration is
checked before and after; if it is not right after, it is put back as it was.

Exit code: 0 done, 1 failed and nothing changed, 2 usage.
END
}

me=remove-sudo-password-prompt
# Not $0: copy-all-keys.sh sends this script, and then it has no name.
self=utils/$me.sh
say() { printf '%s\n' "$me: $*"; }
warn() { say "warning: $*" >&2; }
hint() { say "hint: $*" >&2; }
die() {
    say "error: $1" >&2
    [ $# -lt 2 ] || hint "$2"
    exit 1
}
misuse() {
    say "error: $1, see --help" >&2
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }
exists() { [ -e "$1" ] || [ -L "$1" ]; }

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export PATH
export LC_ALL=C
umask 077

# sudo skips names with a dot in this folder: what is being made there does not count yet.
FOLDER=/etc/sudoers.d
FILE=$FOLDER/mysql-refreshd
MARK='# Written by utils/remove-sudo-password-prompt.sh of mysql-refreshd, which replaces it and takes it away.'

# --- what is asked for -----------------------------------------------------------------------------------------------

user=mysql-refreshd path=/usr/local/bin/mysql-refreshd role='' create=no action=install
while [ $# -gt 0 ]; do
    case $1 in
        --user | --path | --role)
            [ $# -ge 2 ] || misuse "$1 takes a value"
            case $1 in
                --user) user=$2 ;;
                --path) path=$2 ;;
                --role) role=$2 ;;
            esac
            shift
            ;;
        --create-user) create=yes ;;
        --remove | --check | --dry-run)
            [ "$action" = install ] || misuse "--remove, --check and --dry-run exclude each other"
            action=${1#--}
            ;;
        --help | -h)
            usage
            exit
            ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done

# Lower case only: sudo takes a name in capitals for an alias, and ALL for everyone.
case $user in
    '' | [!a-z_]* | *[!a-z0-9_.-]*) misuse "--user takes an account's name in lower case letters, digits, _ . -" ;;
    root) misuse "--user root needs no rule" ;;
esac
# Anything else would have to be escaped in sudoers, or be a pattern there.
case $path in
    /*[!A-Za-z0-9_./+-]*) misuse "--path may hold letters, digits and _ . / + - only" ;;
    */ | *//* | */./* | */../* | */. | */..) misuse "--path must be plain, without // . or .." ;;
    /*) ;;
    *) misuse "--path must be absolute" ;;
esac
case $role in
    '' | source | destination | both) ;;
    *) misuse "--role is source, destination or both" ;;
esac

# --- the drop-in -----------------------------------------------------------------------------------------------------

# commands ROLE: one a line
commands() {
    [ "$1" = destination ] || printf '%s agent --role source\n' "$path"
    [ "$1" = source ] || printf '%s agent --role destination\n' "$path"
    # one more session for an agent, on links with latency: carries its bytes, does nothing by itself
    printf '%s agent --lane\n' "$path"
}

# text ROLE
text() {
    cat <<END
$MARK
# The account may start the agent as root, in these roles, without a password; it may do nothing else.
Cmnd_Alias MYSQL_REFRESHD = $(commands "$1" | sed 's/$/, /' | tr -d '\n' | sed 's/, $//')
# what passes through stdin holds passwords: it belongs in no log of sudo's
Defaults!MYSQL_REFRESHD !requiretty, !use_pty, env_reset, !log_input, !log_output
$user ALL=(root:root) NOPASSWD: MYSQL_REFRESHD
END
}

# What counts of a drop-in.
rules() { grep -v -e '^[[:space:]]*#' -e '^[[:space:]]*$' "$1" || true; }
same_rules() { [ "$(rules "$FILE")" = "$(text "$1" | grep -v '^#')" ]; }
ours() { head -n 1 "$FILE" | grep -qxF "$MARK"; }

# Without --role: what this account is allowed already, so that running this again never gives a source more.
choose_role() {
    [ -z "$role" ] || return 0
    role=both
    [ -f "$FILE" ] && [ -r "$FILE" ] || return 0
    for one in source destination; do
        if same_rules "$one"; then role=$one; fi
    done
}

# --- whether the program can be trusted ------------------------------------------------------------------------------

# One reason a line why somebody other than root could choose what runs here, and how to mend it after a tab; or nothing.
program_faults() {
    if ! exists "$path"; then
        printf '%s is not there\t%s\n' "$path" "install it first: install -o root -g root -m 0755 mysql-refreshd $path"
        return
    fi
    real=$(readlink -f "$path") || real=''
    if [ "$real" != "$path" ]; then
        printf '%s is a symlink, or behind one\t%s\n' "$path" "use the real path, here and as the host's agent_path: --path $real"
        return
    fi
    if [ ! -f "$path" ] || [ -z "$(find "$path" -prune -perm -0500)" ]; then
        printf '%s is no program that root can run\t%s\n' "$path" "run: chmod 0755 $path"
    fi
    place=$path
    while :; do
        if [ -n "$(find "$place" -prune ! -uid 0)" ]; then
            printf '%s does not belong to root\t%s\n' "$place" "whoever owns it could become root; if it is right: chown root:root $place"
        fi
        if [ -n "$(find "$place" -prune \( -perm -0020 -o -perm -0002 \))" ]; then
            printf '%s may be written to by others than root\t%s\n' "$place" "whoever can write there could become root; run: chmod go-w $place"
        fi
        [ "$place" != / ] || break
        place=$(dirname "$place")
    done
}

tab=$(printf '\t')
tell_program_faults() {
    program_faults | while IFS=$tab read -r what mend; do
        say "$1: $what" >&2
        hint "$mend"
    done
}

# --- what sudo makes of it -------------------------------------------------------------------------------------------

# Every right of the account: nopasswd|passwd|denied, where sudo says that it stands (- if it does not), the command.
rights() {
    sudo -ll -U "$user" 2>/dev/null | awk '
        /^[^ \t].*(entry|Role):/ { place = $3 ~ /^\// ? $3 : "-"; free = 0; root = 1; listing = 0 }
        /^ +RunAsUsers:/ { root = /[ ,](root|ALL)(,|$)/ }
        /^ +Options:/ { free = /!authenticate/ }
        /^ +Commands:/ { listing = 1; next }
        listing && /^\t/ && root {
            sub(/^\t/, "")
            how = free ? "nopasswd" : "passwd"
            if (sub(/^!/, "")) how = "denied"
            print how "\t" place "\t" $0
        }'
}

# verdict COMMAND: what the last rule that fits says, because that is the one that counts; none if no rule fits.
verdict() {
    rights | awk -F '\t' -v wanted="$1" -v path="$path" '
        BEGIN { said = "none" }
        $3 == wanted || $3 == path || $3 == "ALL" { said = $1 }
        END { print said }'
}

# Why the account cannot do what the drop-in is for; nothing if it can.
not_effective() {
    commands "$role" | while read -r command; do
        case $(verdict "$command") in
            nopasswd) ;;
            none) printf '%s may not run: %s\n' "$user" "$command" ;;
            passwd) printf 'a later rule asks %s for a password again: %s\n' "$user" "$command" ;;
            denied) printf 'a later rule forbids %s: %s\n' "$user" "$command" ;;
        esac
    done
}

tell_not_effective() {
    say "error: $(printf '%s\n' "$1" | head -n 1)" >&2
    case $1 in
        *'a later rule'*)
            lines_about | while read -r line; do hint "the later rule may be $line"; done
            hint "the last rule that fits counts: put that one into a file whose name sorts before mysql-refreshd"
            ;;
        *)
            if [ -e "$FILE" ]; then hint "does /etc/sudoers end with the line: @includedir $FOLDER ?"; else hint "run: sudo $self"; fi
            ;;
    esac
}

# Lines that give the account, or a group of it, something.
lines_about() {
    names=$(printf '%s\n' "$user" ALL && id -Gn "$user" | tr ' ' '\n' | sed 's/^/%/')
    for file in /etc/sudoers "$FOLDER"/*; do
        case ${file#"$FOLDER"/} in *.* | *~ | mysql-refreshd) continue ;; esac
        [ -f "$file" ] || continue
        awk -v names="$names" -v file="$file" '
            BEGIN { n = split(names, list, "\n"); for (i = 1; i <= n; i++) wanted[list[i]] = 1 }
            $1 in wanted { print file ":" FNR ": " $0 }' "$file"
    done
}

warn_of_more() {
    more=$(rights | awk -F '\t' -v role_commands="$(commands both)" '
        BEGIN { n = split(role_commands, list, "\n"); for (i = 1; i <= n; i++) ours[list[i]] = 1 }
        !($3 in ours) && $1 != "denied"')
    [ -n "$more" ] || return 0
    printf '%s\n' "$more" | while IFS=$tab read -r how place command; do
        with='with its password'
        [ "$how" = passwd ] || with='WITHOUT A PASSWORD'
        [ "$place" = - ] && place='' || place=" ($place)"
        warn "$user may also run as root, $with: $command$place"
    done
    lines_about | while read -r line; do hint "that may come from $line"; done
    hint "the agent needs none of it: remove such a line with visudo -f FILE, or take the account out of the group with gpasswd -d $user GROUP"
}

# --- changing it -----------------------------------------------------------------------------------------------------

# Until all is proven, every way out of here puts back what was.
new='' old='' placed=no created=no home=''
put_back() {
    code=$?
    trap '' INT TERM HUP
    if [ $placed = yes ]; then
        if [ -n "$old" ]; then mv -f "$old" "$FILE"; else rm -f "$FILE"; fi
    elif [ -n "$old" ]; then
        rm -f "$old"
    fi
    [ -z "$new" ] || rm -f "$new"
    if [ $created = yes ]; then
        userdel "$user" || true
        [ -z "$home" ] || rmdir "$home" 2>/dev/null || true
    fi
    exit "$code"
}

begin() {
    [ "$(id -u)" -eq 0 ] || die "this needs root" "run: sudo $self"
    have sudo || die "there is no sudo here" "install the package sudo"
    have visudo || die "there is no visudo here, so nothing could be checked" "install the package sudo"
    [ -d "$FOLDER" ] || die "$FOLDER is not there" "make it (mode 0750, root's), and end /etc/sudoers with the line: @includedir $FOLDER"
    if [ -L "$FILE" ] || { exists "$FILE" && [ ! -f "$FILE" ]; }; then
        die "$FILE is no regular file" "look at it, and remove it"
    fi
    trap put_back EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# What sudo itself would refuse, it would refuse for everybody on this machine.
whole_is_right() { visudo -c >/dev/null 2>&1; }
check_whole_before() {
    whole_is_right || {
        visudo -c 2>&1 | sed 's/^/  /' >&2 || true
        die "sudo's configuration has errors already; nothing was changed" "mend it with visudo"
    }
}

keep_old() {
    exists "$FILE" || return 0
    old=$(mktemp "$FOLDER/.mysql-refreshd.old.XXXXXX")
    cp -p "$FILE" "$old"
}

# From now on it stays.
settle() {
    placed=no created=no
    [ -z "$old" ] || rm -f "$old"
    old=''
}

create_account() {
    if getent passwd "$user" >/dev/null; then return; fi
    [ $create = yes ] || die "there is no account $user here" "make it, or say --create-user"
    have useradd || die "there is no useradd here to make the account $user with" "make it with what this system has, then run this again"
    home=/var/lib/$user
    # '*' is no password at all. '!' would be a locked account, which sshd without PAM turns away.
    useradd --system --user-group --no-create-home --home-dir "$home" --shell /bin/sh --password '*' \
        --comment 'mysql-refreshd agents' "$user" >/dev/null || die "useradd could not make the account $user"
    created=yes
    # Root's: in it lies also what root's agents keep, and sshd accepts a home of root's.
    if [ -e "$home" ]; then home=''; else
        mkdir -m 0755 "$home"
        chmod 0755 "$home"
    fi
    say "made the system account $user, without a password"
}

in_place() { exists "$FILE" && same_rules "$role" && [ -n "$(find "$FILE" -prune -uid 0 -gid 0 -perm 0440)" ]; }

check_foreign() {
    if exists "$FILE" && ! ours && ! same_rules "$role"; then
        die "$FILE was written by something else; it stays as it is" "let that write it (utils/README.md has the text), or remove the file"
    fi
}

install_rule() {
    begin
    if [ -n "$(program_faults)" ]; then
        tell_program_faults error
        exit 1
    fi
    choose_role
    check_foreign
    check_whole_before
    new=$(mktemp "$FOLDER/.mysql-refreshd.new.XXXXXX")
    text "$role" >"$new"
    chown 0:0 "$new"
    chmod 0440 "$new"
    complaint=$(visudo -c -f "$new" 2>&1) || die "visudo does not accept the drop-in: $complaint" "this sudo may be too old, or not sudo's own"
    create_account
    if in_place; then
        stays=yes
    else
        stays=no
        keep_old
        placed=yes
        mv -f "$new" "$FILE"
        new=''
        whole_is_right || {
            visudo -c 2>&1 | sed 's/^/  /' >&2 || true
            die "with the drop-in, sudo's configuration has errors: it was put back as it was"
        }
    fi
    why=$(not_effective)
    if [ -n "$why" ]; then
        tell_not_effective "the drop-in does not do its work: $why"
        if [ $stays = no ]; then say "put back as it was" >&2; fi
        exit 1
    fi
    made=$created
    settle
    if [ $stays = no ]; then
        say "wrote $FILE: $user may start the agent without a password ($role)"
    elif [ "$made" = no ]; then
        say "nothing to change: $user may start the agent without a password ($role)"
    fi
    warn_of_more
    case $(getent passwd "$user" | cut -d: -f7) in
        */nologin | */false) warn "$user has no login shell, so it cannot be logged in to by SSH; run: usermod -s /bin/sh $user" ;;
    esac
}

remove_rule() {
    begin
    if ! exists "$FILE"; then
        say "nothing to change: there is no $FILE"
        return
    fi
    choose_role
    check_foreign
    check_whole_before
    keep_old
    placed=yes
    rm -f "$FILE"
    whole_is_right || die "without $FILE sudo's configuration has errors: it was put back as it was" "another file seems to use its alias MYSQL_REFRESHD"
    settle
    say "removed $FILE"
    if getent passwd "$user" >/dev/null; then say "the account $user stays; to remove it: userdel $user"; fi
}

check_rule() {
    begin
    getent passwd "$user" >/dev/null || die "there is no account $user here" "sudo $self --create-user"
    choose_role
    bad=no
    if [ -n "$(program_faults)" ]; then
        tell_program_faults error
        bad=yes
    fi
    why=$(not_effective)
    if [ -n "$why" ]; then
        tell_not_effective "$why"
        bad=yes
    fi
    warn_of_more
    [ $bad = no ] || exit 1
    say "$user may start the agent without a password ($role)"
}

case $action in
    install) install_rule ;;
    remove) remove_rule ;;
    check) check_rule ;;
    dry-run)
        choose_role
        tell_program_faults warning
        text "$role"
        ;;
esac
