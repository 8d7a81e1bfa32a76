// Package redlockmodel checks the protocol that redislock uses over several independent servers: Redlock, with fencing
// tokens. Its tests explore every state that a model of the protocol can reach, and look for one that breaks a claim.
// The package is nothing but its tests; -v shows how each of many mutations of the protocol breaks which claim, step by
// step, and -large explores larger models.
//
// # The protocol
//
// There are N nodes; a quorum is N/2+1 of them. Every try to acquire has an owner id of its own. All requests go to all
// nodes at once, and what a node does with one is atomic. A lock that has expired is free.
//
//	ACQ      refused if there is a tombstone of the owner. If the lock is free, the owner gets it for the TTL, and
//	         fence = mint = max(fence+1, clock, floor): granted. If the owner has it already, for the TTL again: granted,
//	         with mint = fence. Otherwise refused.
//	CONFIRM  if the owner has the lock and fence <= token: fence = token, ok. Otherwise refused.
//	RENEW    if the owner has the lock: for the TTL again, ok. Otherwise refused.
//	REPAIR   refused if there is a tombstone of the owner. If the lock is free, the owner gets it for the TTL, and
//	         fence = max(fence, token).
//	REL      if the owner has the lock, it is free. A tombstone is left.
//	LEAVE    the owner leaves the line of waiters; nothing else changes.
//
// When an owner sends CONFIRM, and REL, is not written here again: it is the table of package protocol, which the
// backend follows as well.
//
// With a quorum of grants, the token is the greatest mint among them. Nodes that minted just that know it; the others
// get CONFIRM. With a quorum of nodes that know it, the owner is granted, and its lease is valid until TTL - drift
// after ACQ was first sent. Nodes that refused him, and had put him in line, get LEAVE. With a quorum of RENEW ok to
// one renewal it is valid until TTL - drift after that was sent, and nodes without the lock get REPAIR. An owner that
// gives up, or unlocks, first ceases to believe, and then sends REL.
//
// # What holds, and under which assumptions
//
// Exclusion: no two leases are valid at the same time. It holds however long messages and processes are delayed,
// whatever is lost, duplicated or overtaken, if
//   - no lock vanishes before its time: no node loses data (it restarts empty, or without its last writes; or a replica
//     takes over that lacks them), no node's clock jumps ahead, no key is evicted or deleted. One node that restarts
//     empty, once, is enough for two holders. A node that restarts empty and stays away for a TTL breaks nothing.
//   - in the time of a lease, no holder's clock is slower than a node's by more than the drift that was taken off. It
//     may be faster, by any amount: then the lease ends early.
//   - the holder looks at its clock each time before it acts. (If it is paused in between, that is what the token is
//     for.)
//   - a renewal counts from when it was sent, an answer counts for the request that it answers and for no other, and an
//     owner id is never used for another try.
//
// Neither tombstones nor tokens are needed for it.
//
// Continuity: while a lease is valid, nobody else has been granted since it was. It holds under the same assumptions,
// if validity that is over is over for good: not if a renewal counts that was confirmed after that, although it was
// sent before and TTL - drift after its sending are not over. Somebody else may have been granted, and have unlocked,
// in between, and a late ACQ or REPAIR have brought the lock back. With this rule it does not matter how many nodes
// are repaired, or whether repaired nodes are counted; without it, it does not help to repair a minority only.
//
// Distinct tokens, tokens in order: no two grants have the same token, and who was granted before another one sent its
// first request has the smaller token. They hold without any assumption on time: locks may vanish at any moment, clocks
// of nodes and clients say anything, and nobody looks at them. They need that
//   - no node's fence goes back. A node may forget it (restart empty, or let the key expire) as long as its clock, at
//     the next grant there, is past what it forgot: then the next mint is what it would have been. What it forgot is the
//     greatest token which it minted, confirmed or repaired, made perhaps by the clock of another node, or by a floor. So
//     the clocks of all nodes, and what floors are made of, must not be further ahead of a node's clock than the node was
//     away, or than the key was left unused before it expired.
//   - CONFIRM compares the fence. With the owner check alone, tokens are distinct only if no ACQ is ever executed twice,
//     and CONFIRM is counted only where the mint was one of those that made the token; or else under the assumptions for
//     exclusion. (A client library that repeats a command whose answer got lost executes twice.)
//
// Tokens in order of grants: of two grants, the later one has the greater token, however they overlapped. It needs both
// the assumptions for exclusion and those for tokens.
//
// No orphan: a node that has processed an owner's REL never again has the lock for it. It needs a tombstone that
// outlives every request of the owner under way, REPAIR too. That an ACQ was answered is not enough to do without: only
// if nothing was sent twice and nothing was repaired. Without tombstones the lock may be taken, for a TTL, by an owner
// that is gone; nothing else breaks.
//
// # What is explored
//
// All states, to the end, not up to some depth: some 100,000 in each model, and with -large up to 19 million, the last
// ones a hundred steps from the beginning. By default (-large in brackets):
//   - 3 nodes (4, 5) and 2 owners (3), each of them one try, with any number of renewals and repairs. A client that
//     tries again is another owner. The claims are about two owners each. What others do is no more than to take locks,
//     which is as if messages were late, and to raise fences; so models with ghosts, who raise fences at any time, stand
//     for any number of owners. That is an argument, checked for 3 owners. Ghosts also stand for a CONFIRM that arrives
//     after its owner was granted, or gave up.
//   - Messages: of each kind, any that was ever sent may arrive at any time, again and again, or never; of answers, any
//     quorum may have arrived. In the models where messages come once, ACQ takes effect once.
//   - Without time: a lock may vanish at any moment, which stands for all of expiry, REL, RENEW and their delays. With
//     time: ticks; a TTL of 1 or 2 of them (3); the drift is 0. A lock expires TTL ticks after it was taken, or any time
//     later. An owner may stop at any time, and for any time.
//   - Tokens are integers up to 3, or, unbounded, any: what matters of them is their order, so a state has their ranks,
//     and a node mints anything greater than its fence, as its clock and the floor may say anything.
//
// States that differ in the order of nodes only are one, and owners begin in the order of their names. Neither loses
// anything: nodes differ in nothing, nor do owners.
//
// Not covered: that anybody is ever granted; the line of waiters, but for what LEAVE must not do; TTLs that differ
// between the requests of an owner, so that one might shorten what another one gave; tombstones that expire; a change
// of the set of nodes; scripts and code, which may differ from the model.
//
// Nothing in it runs beside anything else, so it is not built for the race detector, with which it takes five times as
// long.
package redlockmodel
