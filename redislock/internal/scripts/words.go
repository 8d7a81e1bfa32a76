package scripts

import (
	"strconv"
	"time"
)

// Words are what a script takes: so many keys, and then arguments.
type Words struct {
	Keys int
	All  []string
}

// AcquireWords are for a request for a lock, of an owner who does not join the line.
func (n Names) AcquireWords(ttl time.Duration, unanswered int, least string) Words {
	words := append(make([]string, 0, 14), n.Lock, n.Fence, n.Tombstone, n.Queue, n.Alive, n.Holders) // with all below
	if n.Mode != "" {
		words = append(words, n.Slots)
	}
	keys := len(words)
	return Words{keys, append(words, n.Value, Milliseconds(ttl), strconv.Itoa(unanswered), least, n.Mode)}
}

// JoinWords are AcquireWords for an owner who joins the line, with the arrival that he has in it, if any.
func (n Names) JoinWords(ttl time.Duration, unanswered int, least, arrival string) Words {
	w := n.AcquireWords(ttl, unanswered, least)
	w.All = append(w.All, n.Member, arrival)
	return w
}

// TakeWords are AcquireWords for an owner who wants the lock alone, and has asked for nothing else yet.
func (n Names) TakeWords(ttl time.Duration, least string) Words {
	return Words{4, []string{n.Lock, n.Fence, n.Tombstone, n.Queue, n.Value, Milliseconds(ttl), least}}
}

// GiveWords are FreeWords for an owner who has the lock alone.
func (n Names) GiveWords() Words { return Words{2, []string{n.Lock, n.Queue, n.Value}} }

// FreeWords are for an owner who is not in line.
func (n Names) FreeWords() Words {
	words := append(make([]string, 0, 8), n.Lock, n.Queue, n.Alive, n.Tombstone)
	if n.Mode != "" {
		words = append(words, n.Holders, n.Slots)
	}
	keys := len(words)
	return Words{keys, append(words, n.Value, n.Mode)}
}

// ReleaseWords are for an owner who may be in line. If there is doubt, requests of it that arrive later are refused.
func (n Names) ReleaseWords(doubt bool) Words {
	return Words{6, []string{
		n.Lock, n.Queue, n.Alive, n.Tombstone, n.Holders, n.Slots, n.Value, n.Mode, n.Member, flag(doubt),
	}}
}

// KeepWords are for an owner who gives a lock back that others are not to have for a while.
func (n Names) KeepWords(d time.Duration) Words {
	const step = time.Millisecond
	return Words{4, []string{n.Lock, n.Holders, n.Slots, n.Queue, n.Value, n.Mode, Milliseconds(d + step - 1)}}
}

// AdoptWords are for an owner who takes over the lock of one that has a value.
func (n Names) AdoptWords(from string, ttl time.Duration) Words {
	return Words{3, []string{n.Lock, n.Holders, n.Slots, from, n.Value, n.Mode, Milliseconds(ttl)}}
}

// LeaveWords are ReleaseWords in doubt, with the tombstone by which the line knows that an owner has left for good:
// that of his first try.
func (n Names) LeaveWords(tombstone string) Words {
	return Words{7, []string{
		n.Lock, n.Queue, n.Alive, n.Tombstone, n.Holders, n.Slots, tombstone, n.Value, n.Mode, n.Member, flag(true),
	}}
}

// ConfirmWords are for who makes a token the last one; with a TTL, a lock that is gone is set again.
func (n Names) ConfirmWords(token uint64, ttl time.Duration) Words {
	words := []string{n.Lock, n.Fence, n.Tombstone, n.Value, strconv.FormatUint(token, 10)}
	if ttl > 0 {
		words = append(words, Milliseconds(ttl))
	}
	return Words{3, words}
}

// LineUpWords are for an owner who steps back into the line; tombstone is as for LeaveWords, and doubt as for
// ReleaseWords.
func (n Names) LineUpWords(tombstone, arrival string, doubt bool) Words {
	return Words{5, []string{
		n.Lock, n.Queue, n.Alive, n.Tombstone, tombstone, n.Value, n.Member, arrival, flag(doubt),
	}}
}

// PollWords are for some members of a line.
func (n Names) PollWords(members []string) Words {
	return Words{4, append([]string{n.Lock, n.Queue, n.Alive, n.Holders}, members...)}
}

// ExtendWords are for the renewal of a lock that may have several holders.
func (n Names) ExtendWords(ttl time.Duration) Words {
	return Words{3, []string{n.Lock, n.Holders, n.Slots, n.Mode, n.Value, Milliseconds(ttl)}}
}

// InspectWords are for who wants to know who has a lock, and who waits: so many of both.
func (n Names) InspectWords(most int) Words {
	return Words{6, []string{n.Lock, n.Fence, n.Queue, n.Alive, n.Holders, n.Slots, strconv.Itoa(most)}}
}

// RevokeWords are for who takes a lock away, or, if breaks is set, frees it; the owner is that of this request. why
// says who and why, and from is from which end of a lease on to look at several holders.
func (n Names) RevokeWords(why string, breaks bool, from string) Words {
	kind := "r"
	if breaks {
		kind = "b"
	}
	return Words{8, []string{
		n.Lock, n.Fence, n.Queue, n.Alive, n.Holders, n.Slots, NoteOf(n), n.Tombstone, why, kind, from,
	}}
}

// RenewWords are for the renewal of a lock that has one holder, with the given value.
func RenewWords(lock, value string, ttl time.Duration) Words {
	return Words{1, []string{lock, value, Milliseconds(ttl)}}
}

// Join returns the words for a script that does at once what several runs of it would.
func Join(ws []Words) Words {
	if len(ws) == 1 {
		return ws[0]
	}
	var all Words
	for _, w := range ws {
		all.Keys += w.Keys
		all.All = append(all.All, w.All[:w.Keys]...)
	}
	for _, w := range ws {
		all.All = append(all.All, w.All[w.Keys:]...)
	}
	return all
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// Milliseconds returns a duration as Redis wants it.
func Milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
