# The first process of a host: gives it a root of its own, then becomes its sshd.
# usage: host.sh FOLDER NAME COMMON KEEP...
#   FOLDER becomes /tmp; COMMON holds hosts, passwd, keys, and venv, the environment of isobit;
#   KEEP are folders below /tmp to keep.
set -euo pipefail
folder=$1 name=$2 common=$3
shift 3

hostname "$name"
mount -t tmpfs -o mode=1777,size=2g tmpfs "$folder"
for kept in "$@"; do
  mkdir -p "$folder/${kept#/tmp/}"
  mount --bind "$kept" "$folder/${kept#/tmp/}"
done
mkdir -p "$folder/home/.ssh" "$folder/common"
mount --bind "$common" "$folder/common"
mount --move "$folder" /tmp

cp /tmp/common/key.pub /tmp/home/.ssh/authorized_keys
cp /tmp/common/bashrc /tmp/home/.bashrc
cp /tmp/common/bashrc /tmp/home/.profile
cp -P /tmp/common/venv /tmp/home/isobit-venv
[ "$name" != desk ] || cp /tmp/common/key /tmp/home/.ssh/id_ed25519
chmod -R go= /tmp/home
mount --bind /tmp/common/hosts /etc/hosts
mount --bind /tmp/common/passwd /etc/passwd
[ ! -e /etc/resolv.conf ] || mount --bind /tmp/common/resolv.conf /etc/resolv.conf
mount -t tmpfs -o mode=755,size=16m tmpfs /run
mkdir /run/sshd
mount -t tmpfs -o mode=1777,size=512m tmpfs /dev/shm

echo ready
exec /usr/sbin/sshd -D -e -p 22 -f /dev/null -h /tmp/common/host_key \
  -o AuthorizedKeysFile=/tmp/home/.ssh/authorized_keys -o PidFile=none -o UseDNS=no \
  -o UsePAM=no -o StrictModes=no -o PermitRootLogin=prohibit-password
