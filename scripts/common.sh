# shellcheck shell=sh
# What the scripts have in common, which run in the directory above.

# modules are those within this one. That of the etcd server is one line.
modules() { find examples internal redislock -name go.mod ! -path 'internal/etcdtest/*' -exec dirname {} \;; }

# with_race has the go command build with the race detector, also where a test calls it, if there is the C compiler that it
# needs on this system. Whatever the scripts do, they then find compiled what another one has.
with_race() {
	command -v "$(go env CC)" >/dev/null || return 1
	export GOFLAGS="${GOFLAGS:-} -race"
}
