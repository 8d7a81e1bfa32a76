package conformance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/lockerkit/locker"
)

// ownerDefects compare something else than whole owners.
var ownerDefects = []defect{
	{
		name:   "owners compared by their second half",
		store:  comparing(everywhere, func(o locker.Owner) any { return [8]byte(o[8:]) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners compared in the middle",
		store:  comparing(everywhere, func(o locker.Owner) any { return [6]byte(o[5:]) }),
		caught: []string{"backend/OwnersAlike", "backend/OwnerDecides"},
		fine:   []string{"backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners compared but for one byte",
		store: comparing(everywhere, func(o locker.Owner) any {
			o[7] = 0
			return o
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners compared in seven bits",
		store: comparing(everywhere, func(o locker.Owner) any {
			for i := range o {
				o[i] &= 0x7f
			}
			return o
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners as C strings",
		store: comparing(everywhere, func(o locker.Owner) any {
			s, _, _ := strings.Cut(string(o[:]), "\x00")
			return s
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners without trailing white space",
		store:  comparing(everywhere, func(o locker.Owner) any { return string(bytes.Trim(o[:], " \t\x00")) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners released without regard to case",
		store:  comparing(inRelease, func(o locker.Owner) any { return foldASCII(o) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners renewed without regard to case",
		store:  comparing(inRenew, func(o locker.Owner) any { return foldASCII(o) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners who ask again without regard to case",
		store:  comparing(inAcquire, func(o locker.Owner) any { return foldASCII(o) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/AcquireAgain", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners made valid UTF-8",
		store:  comparing(everywhere, func(o locker.Owner) any { return strings.ToValidUTF8(string(o[:]), "\uFFFD") }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners compared by a sum",
		store: comparing(everywhere, func(o locker.Owner) any {
			return binary.NativeEndian.Uint64(o[:8]) + binary.NativeEndian.Uint64(o[8:])
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners compared as sets of bytes",
		store: comparing(everywhere, func(o locker.Owner) any {
			slices.Sort(o[:])
			return o
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "owners as two numbers that are rounded",
		store: comparing(everywhere, func(o locker.Owner) any {
			return [2]float64{float64(binary.BigEndian.Uint64(o[:8])), float64(binary.BigEndian.Uint64(o[8:]))}
		}),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners compared by 16 bits of a checksum",
		store:  comparing(inRelease, func(o locker.Owner) any { return uint16(crc32.ChecksumIEEE([]byte(o.String()))) }),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners renewed by a short hash",
		store:  comparing(inRenew, shortHash),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:   "owners released by a short hash",
		store:  comparing(inRelease, shortHash),
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/AcquireAgain"},
	},
	{
		name: "owners as patterns",
		store: func(s *store) {
			s.mayRelease = func(holder, caller locker.Request) bool {
				matches, _ := path.Match(string(caller.Owner[:]), string(holder.Owner[:]))
				return matches || holder.Owner == caller.Owner
			}
		},
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name: "an owner of zeros may do everything",
		store: func(s *store) {
			s.mayRelease = func(holder, caller locker.Request) bool {
				return caller.Owner == locker.Owner{} || holder.Owner == caller.Owner
			}
		},
		caught: []string{"backend/OwnersAlike"},
		fine:   []string{"backend/OwnerDecides", "backend/UnknownOutcome", "unlock/StaleCannotFreeSuccessor"},
	},
	{
		name:    "those who are like him leave the line with an owner",
		backend: func(_ *testing.T, c *client) locker.Backend { return leavesTogether{queued{c}} },
		caught:  []string{"backend/OwnersAlike"},
		fine:    []string{"backend/OwnerDecides", "waiting/FIFO", "waiting/CancelStorm", "unlock/StaleCannotFreeSuccessor"},
	},
}

// Where owners are compared.
const (
	inAcquire = 1 << iota
	inRelease
	inRenew
	everywhere = inAcquire | inRelease | inRenew
)

// comparing returns a store that compares something of the owners.
func comparing(where int, of func(locker.Owner) any) func(*store) {
	return func(s *store) {
		same := func(holder, caller locker.Request) bool { return of(holder.Owner) == of(caller.Owner) }
		if where&inAcquire != 0 {
			s.knows = same
		}
		if where&inRelease != 0 {
			s.mayRelease = same
		}
		if where&inRenew != 0 {
			s.mayRenew = same
		}
	}
}

func foldASCII(o locker.Owner) locker.Owner {
	for i, c := range o {
		if 'A' <= c && c <= 'Z' {
			o[i] += 'a' - 'A'
		}
	}
	return o
}

// shortHash is one that nobody knows, of 13 bits, so that the test finds it every time. One of 16 bits is found by 19
// runs of 20.
func shortHash(o locker.Owner) any {
	sum := sha256.Sum256(o[:])
	return binary.NativeEndian.Uint16(sum[:]) & 0x1fff
}

// leavesTogether takes all whose owners end like that of a grant out of the line.
type leavesTogether struct{ queued }

func (b leavesTogether) Release(ctx context.Context, g locker.Grant) error {
	if err := b.ask(ctx, func(s *store) {
		s.lines[g.Name()] = slices.DeleteFunc(s.lines[g.Name()], func(w *waiter) bool {
			return bytes.Equal(w.request.Owner[8:], g.Owner[8:])
		})
	}); err != nil {
		return err
	}
	return b.queued.Release(ctx, g)
}
