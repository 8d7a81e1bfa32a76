// Package peers tests what this library and others have to do with one another: on Redis, redsync, bsm/redislock,
// node-redlock, rueidislock and what people write by hand; on Postgres, go-pglock; on etcd, the Mutex of its client.
// The code of the pages in docs about moving from them is here. It is a module of its own, so that the others are in
// nobody's go.mod.
package peers
