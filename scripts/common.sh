# shellcheck shell=sh disable=SC2034
# What the scripts have in common, which run in the directory above.

# modules are those within this one. That of the etcd server is one line.
modules() { find examples internal redislock -name go.mod ! -path 'internal/etcdtest/*' -exec dirname {} \;; }

# with_race has the go command build with the race detector, also where a test calls it, if there is the C compiler that it
# needs on this system. Whatever the scripts do, they then find compiled what another one has.
with_race() {
	command -v "$(go env CC)" >/dev/null || return 1
	export GOFLAGS="${GOFLAGS:-} -race"
}

# The linters, which the go command fetches and builds.
golangci_lint=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
actionlint=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

# tries runs a command that needs the network, and again after a while if that fails.
tries() {
	for pause in 2 10 30 60; do
		! "$@" || return 0
		echo "again in $pause s: $*" >&2
		sleep "$pause"
	done
	"$@"
}
