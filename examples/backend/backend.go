//go:build linux

// Package filelock shows how to write a backend for package locker: it keeps locks as files in a directory, for the
// processes of one machine. Read it beside the documentation of [locker.Backend]; the comments say which rule of that
// contract each part keeps. (docs/write-a-backend.md of the repository gets there step by step, with a map.) What a
// backend is about fits in three questions, answered here as follows.
//
// What makes a step atomic? flock(2) on the directory: whoever has it reads a record, decides, and writes the record.
// It is held for microseconds, not for as long as a lease, and the kernel drops it when its holder is killed.
//
// Whose clock decides when a lease has expired? The store's, and it must be one clock for all: here CLOCK_MONOTONIC,
// which all processes of a Linux machine share, and which is also the one that leases keep their deadlines by. Setting
// the wall clock therefore does nothing to locks, and a machine that sleeps stops both sides alike. It restarts when
// the machine does, so the names of the files begin with the id of the boot, and those of an earlier one are not found.
// (On a system without such a clock, store wall time, and say in the documentation that a clock set forward
// lets a second holder in beside the first, whose writes then only the token can refuse.)
//
// Where do tokens come from? From one counter for the whole directory, so that the record of a key can be deleted when
// the key is free. It survives restarts of every process. Nothing is fsynced: a power failure may lose the last
// values, which is why the counter never falls behind the wall clock in nanoseconds. Only a power failure that loses
// the counter and a clock that is set back, both together, can mint a smaller token.
//
// Limits: one machine and one time namespace, a local file system, processes of one user. A process that is stopped in
// the microseconds of the flock stops all keys of the directory; the others lose their leases, but never exclusion. A
// holder that dies leaves a small file until a later holder unlocks the key. Files of earlier boots can be removed at
// any time; the directory only when nobody uses it.
package filelock

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/lockerkit/locker"
)

// New returns a Client that keeps its locks in dir, which it creates if need be. All Clients of a machine over the same
// directory exclude one another, in whatever process they are.
//
// A constructor returns a Client, not the Backend: users never see that. opts go to locker.New as they are, which
// checks them.
func New(dir string, opts ...locker.Option) (*locker.Client, error) {
	b, err := open(dir)
	if err != nil {
		return nil, err
	}
	return locker.New(b, opts...), nil
}

// backend implements locker.Backend. It has no state of its own that matters: all of it is in the directory.
type backend struct {
	dir  string        // flock locks it, and it has a file for each key held, "token" and "tmp"
	boot []byte        // identifies this boot of the machine: 36 characters and a newline
	turn chan struct{} // a mutex that can be waited for with a ctx
}

func open(dir string) (*backend, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return &backend{dir, boot, make(chan struct{}, 1)}, errors.Join(err, os.MkdirAll(dir, 0o700))
}

// record is the content of the file of a key.
type record struct {
	Name    []byte        // the full name: bytes, because a key need not be UTF-8, which JSON strings have to be
	Owner   string        // of the lease; "" in the record of a free key
	Holder  string        // for people
	Token   uint64        // of the lease
	Expires time.Duration // on the clock of now: expired means free, whether or not the file is still there
}

// Acquire: "in one atomic step" is from enter to leave.
func (b *backend) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	now, leave, err := b.enter(ctx)
	if err != nil {
		return locker.Grant{}, locker.NotAcquired(err) // certain: nothing was written, and nothing will be
	}
	defer leave()
	rec, err := b.load(r, now)
	switch {
	case err != nil:
	case rec.Owner == "": // the key is free: a new grant, with a new token
		rec.Token, err = b.mint()
	case rec.Owner != r.Owner.String(): // Remaining tells New by when to try again
		err = &locker.Held{Holder: rec.Holder, Remaining: rec.Expires - now}
	}
	// Otherwise r.Owner asks once more: it gets its token again, but a whole TTL from now, because that is what New
	// takes it to have. An error of the disk is not marked NotAcquired: what a disk did when it failed is not certain,
	// and a Release too many does no harm.
	g := locker.Grant{Request: r, Token: rec.Token}
	if err == nil {
		err = b.save(g, now)
	}
	return g, err
}

// Renew is one step for each grant, as a step costs microseconds here: no grant waits for long for the one before. With
// a store across a network, ask for all of gs in one round trip, and report each answer when it comes.
func (b *backend) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	for i, g := range gs {
		done(i, locker.Renewal{Err: b.ifHeld(ctx, g, b.save)})
	}
}

// Release is decided by the owner alone, so it does not matter whether g.Token is known or 0: see enter for why nothing
// of an acquire whose outcome is unknown can come after it.
func (b *backend) Release(ctx context.Context, g locker.Grant) error {
	return b.ifHeld(ctx, g, func(locker.Grant, time.Duration) error { return os.Remove(b.file(g.Request)) })
}

// ifHeld calls f, in one step with making sure that g.Owner holds the key. It returns ErrLost if somebody else does or
// the key is free, which it also is if g has expired and nobody has taken it since: Renew "must never bring back a lock
// that the store has let go".
func (b *backend) ifHeld(ctx context.Context, g locker.Grant, f func(locker.Grant, time.Duration) error) error {
	now, leave, err := b.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	switch rec, err := b.load(g.Request, now); {
	case err != nil:
		return err
	case rec.Owner != g.Owner.String(): // compared whole
		return locker.ErrLost
	}
	return f(g, now)
}

// Close has nothing to free: each call closes what it opened.
func (b *backend) Close() error { return nil }

// String names the backend in errors, as locker.Error.Backend.
func (b *backend) String() string { return "filelock" }

// enter waits until no other goroutine and no other process is between enter and leave. What it returns as now must be
// read after that wait: before it, a lease could still be valid that has expired since.
//
// Once ctx has ended it enters no more: New may have called Release by then, and a request that is carried out later
// would leave a lock that nobody releases. That is why the goroutines of a Locker take turns first: a Release that
// comes while an Acquire is in here waits for what becomes of it.
func (b *backend) enter(ctx context.Context) (now time.Duration, leave func(), err error) {
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
	d, err := os.Open(b.dir)
	switch {
	case err == nil:
		err = flock(ctx, d)
	case errors.Is(err, os.ErrPermission): // does not pass by itself; all other errors count as locker.ErrUnavailable
		err = fmt.Errorf("%w: %w", locker.ErrDenied, err)
	}
	leave = func() { _ = d.Close(); <-b.turn } // the kernel drops the flock with the last descriptor
	if err != nil {
		leave()
	}
	return clock(), leave, err
}

// flock tries until ctx ends. A flock that waits would not heed ctx, and block a thread.
func flock(ctx context.Context, d *os.File) error {
	for ctx.Err() == nil {
		if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return context.Cause(ctx)
}

// clock reads CLOCK_MONOTONIC, which package time uses too but does not show.
func clock() time.Duration {
	var ts syscall.Timespec
	if _, _, e := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic(e) // cannot happen, but a wrong time would grant a lock twice
	}
	return time.Duration(ts.Nano())
}

// file names the file of a key. A name of any bytes is not a file name, but its hash is.
func (b *backend) file(r locker.Request) string {
	return fmt.Sprintf("%s/%.36s.%x", b.dir, b.boot, sha256.Sum256([]byte(r.Name())))
}

// load reads the record of a key: the zero record if the key is free. A file that is not a record of this key is an
// error, never a free key, and never ErrLocked: nobody knows who holds it.
func (b *backend) load(r locker.Request, now time.Duration) (rec record, err error) {
	data, err := os.ReadFile(b.file(r))
	if errors.Is(err, os.ErrNotExist) {
		return record{}, nil
	}
	if err == nil && (json.Unmarshal(data, &rec) != nil || string(rec.Name) != r.Name()) {
		err = fmt.Errorf("%s is not a record of this key", b.file(r))
	}
	if rec.Expires <= now {
		rec = record{}
	}
	return rec, err
}

// save writes the record of a key that g.Owner holds, for a TTL from now.
func (b *backend) save(g locker.Grant, now time.Duration) error {
	return b.write(b.file(g.Request), record{[]byte(g.Name()), g.Owner.String(), g.Holder, g.Token, now + g.TTL})
}

// mint returns a token greater than all before. It is on file before the grant that it is for: a process killed in
// between wastes a token, which does no harm.
func (b *backend) mint() (token uint64, err error) {
	data, err := os.ReadFile(b.dir + "/token")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	_ = json.Unmarshal(data, &token) // leaves 0 if there is no token, or if a power failure has spoilt it
	token = max(token+1, uint64(time.Now().UnixNano()))
	return token, b.write(b.dir+"/token", token)
}

// write replaces a file, so that it has the old content or the new, whenever the process is killed. One name does for
// all temporary files, as only one process at a time gets here, and so a killed one leaves one file at most.
func (b *backend) write(name string, v any) error {
	data, _ := json.Marshal(v) // cannot fail for these types
	if err := os.WriteFile(b.dir+"/tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(b.dir+"/tmp", name)
}
