// Package peers tests that this library and others exclude one another on Redis: redsync, bsm/redislock, node-redlock, and
// what people write by hand. It is a module of its own, so that the others are in nobody's go.mod.
package peers
