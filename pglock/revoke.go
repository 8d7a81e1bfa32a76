package pglock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// Revocation, for who takes a lock away. It is noted in a table which sessions have the lock at that moment, and up to
// which token that is about: whoever gets the lock later, also on the same session, has a greater one. Their Lockers
// are notified, and see to the rest: see revoked.go. A holder that is no Locker's cannot be told.
//
// To break a lock is to note the same, and to wait a little for its Lockers to let it go. Those who do not, or who do
// not listen, have their sessions ended, and with them all locks on these.

const (
	// breakPatience is how long the Locker of a lock that is broken has to let it go. Then its session is ended.
	breakPatience = time.Second

	// endPatience bounds how long the server may take to end a session.
	endPatience = 5 * time.Second
)

const (
	// fenceSQL is the greatest token minted so far.
	fenceSQL = `SELECT last_value FROM $ns.token`

	// noteSQL notes a revocation of the locks that some sessions have. Who may not write into the column "broken" can
	// revoke, and not break: so it is left out for that.
	noteSQL = `INSERT INTO $ns.revocation AS old (key, token, by_whom, reason, pid, locker$broken)
SELECT %[1]d, %[2]d, %[3]s, %[4]s, pid, locker$true
FROM unnest('%[5]s'::bigint[], '%[6]s'::bigint[]) AS new (pid, locker)
ON CONFLICT (key, pid, locker, broken) DO UPDATE
SET token = excluded.token, by_whom = excluded.by_whom, reason = excluded.reason WHERE $again
RETURNING pid`

	// alwaysSQL is true, as names are not empty.
	alwaysSQL = `%[7]s != ''`

	// anewSQL is true for a session that was told before to let a lock go, and is known to have had it anew since.
	anewSQL = `EXISTS (SELECT FROM $ns.holder WHERE holder.name = %[7]s
	AND holder.pid = old.pid AND holder.locker = old.locker AND holder.token > old.token)`

	notifySQL = `SELECT pg_notify('` + revokedChannel + `', '%d')`

	// brokenSQL returns the sessions whose Lockers have yet to heed that a lock was broken.
	brokenSQL = `SELECT pid FROM $ns.revocation WHERE key = %d AND token >= %d AND broken`

	// withdrawSQL undoes revokeSQL for those.
	withdrawSQL = `DELETE FROM $ns.revocation WHERE key = %d AND token = %d AND broken AND pid = ANY ('%s'::bigint[])`

	// othersSQL returns how many locks some sessions have beside one, about: an exclusive lock and a slot are an
	// exclusive advisory lock each, a reader's are two shared ones.
	othersSQL = `SELECT coalesce(sum(alone + (shared + 1) / 2), 0) FROM (
	SELECT count(*) FILTER (WHERE mode = 'ExclusiveLock') AS alone, count(*) FILTER (WHERE mode = 'ShareLock') AS shared
	FROM (SELECT *, classid::bigint << 32 | objid::bigint AS key FROM pg_locks
		WHERE locktype = 'advisory' AND objsubid = 1 AND granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) OFFSET 0) AS locks
	WHERE pid = ANY ('%s'::bigint[]) AND NOT (key = ANY ('%s') OR key >> %d = %d) GROUP BY pid
) AS sessions`

	// endAllSQL ends those of some sessions that have a key.
	endAllSQL = `SELECT count(pg_terminate_backend(pid)) FROM (
	SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid::bigint << 32 | objid::bigint = %d AND pid = ANY ('%s'::bigint[])
) AS sessions`
)

// noteFor returns the statement for one kind of revocation.
func noteFor(column, value, again string) string {
	return strings.NewReplacer("$broken", column, "$true", value, "$again", again).Replace(noteSQL)
}

var errNotOfLocker = fmt.Errorf("%w: the key is held by a session that is no Locker's, which cannot be told",
	errors.ErrUnsupported)

// Revoke implements locker.Revoker.
func (b *backend) Revoke(ctx context.Context, name string, r *locker.Revocation) error {
	lock, fence, err := b.seeHolders(ctx, name)
	switch {
	case err != nil:
		return err
	case slices.ContainsFunc(lock, func(p *party) bool { return p.locker == 0 }):
		return errNotOfLocker
	}
	n, err := b.noteRevoked(ctx, name, lock, fence, r)
	if err == nil && n == 0 {
		err = locker.ErrNotHeld
	}
	return err
}

// Break implements locker.Revoker. The token of the next holder is greater, as is each that is minted.
func (b *backend) Break(ctx context.Context, name string, r *locker.Revocation, others bool) error {
	left, fence, err := b.seeHolders(ctx, name)
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(left, func(p *party) bool { return p.locker != 0 })
	if known {
		if _, err := b.noteRevoked(ctx, name, left, fence, r); err != nil {
			return err
		}
		if left, err = b.awaitLetGo(ctx, name, fence, left); err != nil || len(left) == 0 {
			return err
		}
	}
	if err = b.endSessions(ctx, name, left, others); err == nil {
		err = b.awaitEnd(ctx, name, left)
	}
	if known { // what has not been heeded by now is not to be
		_, failure := b.consultOnce(ctx, fmt.Sprintf(b.sql.withdraw, Key(name), fence, arrayOf(pidsOf(left))))
		if err != nil { // or the sessions are over, and what is left is swept away
			err = errors.Join(err, failure)
		}
	}
	return err
}

// seeHolders returns the sessions that have the lock of a name, and the greatest token that any of them may have.
// Whoever has been given the lock just now, and has yet to ask for his token, is no holder yet.
func (b *backend) seeHolders(ctx context.Context, name string) (holders []*party, fence uint64, err error) {
	rows, errs := b.consult(ctx, lookAt([]string{name}), b.sql.fence)
	if errs[0] != nil {
		return nil, 0, explainUnlessEnded(ctx, errs[0])
	}
	holders, err = holdersIn(name, rows[0])
	switch {
	case err != nil:
		return nil, 0, err
	case len(holders) == 0:
		return nil, 0, locker.ErrNotHeld
	case !slices.ContainsFunc(holders, func(p *party) bool { return p.locker != 0 }):
		return holders, 0, nil
	case errs[1] != nil:
		return nil, 0, explainUnlessEnded(ctx, errs[1])
	}
	if len(rows[1]) == 1 && len(rows[1][0]) == 1 {
		fence = parseToken(rows[1][0][0])
	}
	if fence == 0 {
		return nil, 0, errMismatch
	}
	return holders, fence, nil
}

// holdersIn returns the sessions that have the lock of a name.
func holdersIn(name string, rows [][]string) (holders []*party, err error) {
	locks, err := sortOut([]string{name}, rows, nil)
	if err != nil {
		return nil, err
	}
	for _, p := range locks[0].parties {
		if len(p.holds(locks[0].key, locks[0].marks)) > 0 {
			holders = append(holders, p)
		}
	}
	return holders, nil
}

// noteRevoked notes who is to let a lock go, has those notified, and returns how many sessions that are.
func (b *backend) noteRevoked(
	ctx context.Context, name string, holders []*party, fence uint64, r *locker.Revocation,
) (n int, err error) {
	var pids, lockers []int64
	for _, p := range holders {
		if p.locker != 0 {
			pids, lockers = append(pids, int64(p.pid)), append(lockers, int64(p.locker))
		}
	}
	if len(pids) == 0 {
		return 0, nil
	}
	key := Key(name)
	// If others keep the server from notifying, the holders find out when they renew.
	note := b.sql.noteRevoked
	if r.Broken {
		note = b.sql.noteBroken
	}
	rows, errs := b.consult(ctx, fmt.Sprintf(note, key, fence, bytea(r.By), bytea(r.Reason), arrayOf(pids),
		arrayOf(lockers), bytea(name)), fmt.Sprintf(notifySQL, key))
	return len(rows[0]), explainUnlessEnded(ctx, errs[0])
}

// awaitLetGo gives those who listen a little time to let a lock go that was broken, and returns those who have not.
// Who has, and got it again, is not among them.
func (b *backend) awaitLetGo(ctx context.Context, name string, fence uint64, holders []*party) ([]*party, error) {
	key := Key(name)
	until := time.Now().Add(breakPatience)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		rows, errs := b.consult(ctx, lookAt([]string{name}), fmt.Sprintf(b.sql.broken, key, fence))
		if err := errors.Join(errs...); err != nil {
			return nil, explainUnlessEnded(ctx, err)
		}
		now, err := holdersIn(name, rows[0])
		if err != nil {
			return nil, err
		}
		unheeded := make(map[string]bool)
		for _, row := range rows[1] {
			unheeded[row[0]] = true
		}
		waits := false
		holders = slices.DeleteFunc(now, func(p *party) bool {
			if !slices.ContainsFunc(holders, p.is) || p.locker != 0 && !unheeded[strconv.Itoa(p.pid)] {
				return true
			}
			waits = waits || p.hears
			return false
		})
		if !waits || time.Now().After(until) {
			return holders, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// endSessions ends sessions, unless they have other locks, and that is not allowed.
func (b *backend) endSessions(ctx context.Context, name string, holders []*party, others bool) error {
	if slices.ContainsFunc(holders, func(p *party) bool { return p.pid == 0 }) {
		return fmt.Errorf("%w: the key is held by a prepared transaction: roll it back", errors.ErrUnsupported)
	}
	key := Key(name)
	m := marksOf(key)
	pids := arrayOf(pidsOf(holders))
	if !others {
		rows, err := b.consultOnce(ctx, fmt.Sprintf(othersSQL, pids, arrayOf([]int64{key, m.readers, m.slots, m.gate}),
			slotBits, m.first>>slotBits))
		if err != nil {
			return err
		}
		if n, _ := strconv.Atoi(rows[0][0]); n > 0 {
			return &locker.OthersError{Others: n}
		}
	}
	_, err := b.consultOnce(ctx, fmt.Sprintf(endAllSQL, key, pids))
	return err
}

// awaitEnd waits until none of some sessions has a lock any more.
func (b *backend) awaitEnd(ctx context.Context, name string, ended []*party) error {
	until := time.Now().Add(endPatience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		rows, err := b.consultOnce(ctx, lookAt([]string{name}))
		if err != nil {
			return err
		}
		now, err := holdersIn(name, rows)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(now, func(p *party) bool {
			return slices.ContainsFunc(ended, p.is)
		}) {
			return nil
		}
		if time.Now().After(until) {
			return errStillThere
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func pidsOf(ps []*party) (pids []int64) {
	for _, p := range ps {
		if p.pid != 0 {
			pids = append(pids, int64(p.pid))
		}
	}
	return pids
}
