package scripts

import (
	"slices"
	"strconv"
	"time"
)

// What the scripts take: keys first, and then arguments.

// AcquireKeys is how many of the words for the acquire script are keys; and so on.
const (
	AcquireKeys = 5
	ReleaseKeys = 4
	LeaveKeys   = 5
	ConfirmKeys = 3
	LineUpKeys  = 5
	PollKeys    = 3
)

// AcquireWords are for a request for a lock, of an owner who does not join the line. The last one is the least token.
func (n Names) AcquireWords(ttl time.Duration, unanswered int, least string) []string {
	return append(make([]string, 0, 11), // with those who join
		n.Lock, n.Fence, n.Tombstone, n.Queue, n.Alive, n.Value, Milliseconds(ttl), strconv.Itoa(unanswered), least)
}

// JoinWords are AcquireWords for an owner who joins the line. The last two are the least token, and the arrival.
func (n Names) JoinWords(ttl time.Duration, unanswered int, least, arrival string) []string {
	return append(n.AcquireWords(ttl, unanswered, least), n.Member, arrival)
}

// FreeWords are for an owner who is not in line.
func (n Names) FreeWords() []string { return []string{n.Lock, n.Queue, n.Alive, n.Tombstone, n.Value} }

// ReleaseWords are for an owner who may be in line. If there is doubt, requests of it that arrive later are refused.
func (n Names) ReleaseWords(doubt bool) []string { return append(n.FreeWords(), n.Member, flag(doubt)) }

// LeaveWords are ReleaseWords in doubt, with the tombstone by which the line knows that an owner has left for good:
// that of his first try.
func (n Names) LeaveWords(tombstone string) []string {
	return slices.Insert(n.ReleaseWords(true), ReleaseKeys, tombstone)
}

// ConfirmWords are for who makes a token the last one; with a TTL, a lock that is gone is set again.
func (n Names) ConfirmWords(token uint64, ttl time.Duration) []string {
	words := []string{n.Lock, n.Fence, n.Tombstone, n.Value, strconv.FormatUint(token, 10)}
	if ttl > 0 {
		words = append(words, Milliseconds(ttl))
	}
	return words
}

// LineUpWords are for an owner who steps back into the line; tombstone is as for LeaveWords, and doubt as for
// ReleaseWords.
func (n Names) LineUpWords(tombstone, arrival string, doubt bool) []string {
	return []string{n.Lock, n.Queue, n.Alive, n.Tombstone, tombstone, n.Value, n.Member, arrival, flag(doubt)}
}

// PollWords are for some members of a line.
func (n Names) PollWords(members []string) []string {
	return append([]string{n.Lock, n.Queue, n.Alive}, members...)
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// Milliseconds returns a duration as Redis wants it.
func Milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
