package redlock

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// ErrNoQuorum is what a Redlock returns when so many servers do not answer that no majority can grant anything. The
// error wraps what each of them said. It is a locker.ErrUnavailable; or a locker.ErrDenied, ErrUnfit or ErrClosed if so
// many servers say that, as only somebody can mend it, that the others are no majority.
var ErrNoQuorum = errors.New("redlock: no quorum")

// noQuorumError is an ErrNoQuorum with its reasons. It has no method Unwrap: what is wrong with a minority is not its
// class.
type noQuorumError struct {
	nodes, quorum int
	reasons       []error
}

// Error describes the reasons, each once.
func (e *noQuorumError) Error() string {
	var texts []string
	for _, reason := range e.reasons {
		if text := reason.Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return fmt.Sprintf("%v: %d of %d servers failed: %s", ErrNoQuorum, len(e.reasons), e.nodes, strings.Join(texts, "; "))
}

// Is makes it an ErrNoQuorum of one class, and an error of its reasons.
func (e *noQuorumError) Is(target error) bool {
	switch target { //nolint:errorlint // the sentinels themselves
	case ErrNoQuorum:
		return true
	case locker.ErrUnavailable:
		return e.passes()
	case locker.ErrDenied, locker.ErrUnfit, locker.ErrClosed:
		if e.passes() {
			return false
		}
	}
	return slices.ContainsFunc(e.reasons, func(reason error) bool { return errors.Is(reason, target) })
}

// As finds the reasons.
func (e *noQuorumError) As(target any) bool {
	return slices.ContainsFunc(e.reasons, func(reason error) bool { return errors.As(reason, target) })
}

// passes reports whether enough servers may be well again by themselves.
func (e *noQuorumError) passes() bool { return e.nodes-e.lasting() >= e.quorum }

// lasting returns how many servers somebody has to mend.
func (e *noQuorumError) lasting() (count int) {
	for _, reason := range e.reasons {
		if !conn.Passes(reason) && !errors.Is(reason, conn.ErrGivenUp) {
			count++
		}
	}
	return count
}

// open reports whether those that have not answered yet may make it an error of another class.
func (e *noQuorumError) open(pending int) bool {
	return e.passes() && e.nodes-e.lasting()-pending < e.quorum
}

// tooFull returns an ErrNoQuorum if too many nodes are full: then the others need not be asked either.
func (b *redlock) tooFull() error {
	var reasons []error
	for _, n := range b.nodes {
		if n.full() {
			reasons = append(reasons, n.blame(errSilent))
		}
	}
	if len(reasons) > len(b.nodes)-b.quorum {
		return &noQuorumError{len(b.nodes), b.quorum, reasons}
	}
	return nil
}

// agreed returns the token for a lock that a quorum has granted: the greatest that one of them has minted. A try that
// has been granted before had another one confirmed, perhaps, than a node minted that was not asked then: a quorum has
// it.
func (c *claim) agreed() (token uint64) {
	var tokens []uint64
	for i := range c.places {
		if p := &c.places[i]; p.answer == given && p.state == held {
			tokens = append(tokens, p.token)
		}
	}
	slices.Sort(tokens)
	for i := range len(tokens) - c.b.quorum + 1 {
		if tokens[i] == tokens[i+c.b.quorum-1] {
			return tokens[i]
		}
	}
	return tokens[len(tokens)-1]
}

// refusedVote is the outcome of a try that enough nodes have answered, but not granted.
type refusedVote struct {
	held *locker.Held

	// contested: nobody seen has the lock at a quorum, or can have; it fell between several who tried at the same time.
	contested bool
}

// Error implements error.
func (v *refusedVote) Error() string { return v.held.Error() }

// Unwrap makes it an ErrLocked.
func (v *refusedVote) Unwrap() error { return v.held }

// refusal turns the votes into what is known of the holder.
func (c *claim) refusal(t tally) error {
	votes := make(map[string]int)
	var remaining []time.Duration
	v := &refusedVote{held: new(locker.Held), contested: true}
	holder := ""
	for i := range c.places {
		p := &c.places[i]
		if p.answer != given || p.state != refused || p.refusal == nil {
			continue
		}
		value := p.refusal.Value
		votes[value]++
		if votes[value] > votes[holder] {
			holder = value
		}
		remaining = append(remaining, p.refusal.Remaining)
		if value == "" || votes[value]+t.failed+t.pending >= c.b.quorum {
			v.contested = false // there is a line, or somebody who may have a quorum
		}
	}
	v.held.Holder = scripts.HolderIn(holder)
	// As many have to let go as are missing from a quorum.
	slices.Sort(remaining)
	if need := c.b.quorum - t.held; need > 0 && need <= len(remaining) {
		v.held.Remaining = remaining[need-1]
	}
	return v
}

// noQuorum returns the error of a try that too many nodes have not answered.
func (c *claim) noQuorum() *noQuorumError {
	var reasons []error
	for i := range c.places {
		switch p := &c.places[i]; {
		case p.answer == skipped:
			reasons = append(reasons, c.b.nodes[i].blame(conn.ErrNoAnswer))
		case p.answer == pending: // it may be well: others have decided
		case p.err != nil:
			reasons = append(reasons, c.b.nodes[i].blame(p.err))
		}
	}
	return &noQuorumError{len(c.places), c.b.quorum, reasons}
}
