// Package faketime runs the conformance suite on pglock in the fake time of testing/synctest, and a simulation of
// processes whose connections fail. The server lives in the test, too. It does what pglock relies on of Postgres:
// advisory locks, sessions that end, and a sequence. It has no tables, so nothing is recorded, and nobody is revoked.
// What holds for it is not proven for Postgres; the suite runs on that, too, in package pglock.
package faketime
