package etcdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lockerkit/locker/internal/portkeep"
	"github.com/lockerkit/locker/internal/testserver"
)

// AddLearner adds a member that has no vote yet, and refuses nearly everything to clients. It returns its address for
// clients as host:port. The member runs until the test is over.
func (c *Cluster) AddLearner(tb testing.TB) (addr string) {
	tb.Helper()
	m, err := c.startLearner()
	if m != nil {
		tb.Cleanup(func() {
			if err := m.close(); err != nil {
				tb.Error(err)
			}
		})
	}
	if err != nil {
		tb.Fatalf("etcdtest: add a learner: %v", err)
	}
	return m.Addr()
}

func (c *Cluster) startLearner() (*Member, error) {
	program, err := product.Find()
	if err != nil {
		return nil, err
	}
	m := &Member{cluster: c, name: "learner"}
	if m.peer, err = portkeep.Keep(); err != nil {
		return nil, err
	}
	client, err := c.newClient(c.Endpoints())
	if err != nil {
		return m, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := client.MemberAddAsLearner(ctx, []string{m.peerURL()}); err != nil {
		return m, err
	}
	spec := m.spec(
		program,
		[]string{"--initial-cluster=" + formationOf(append(c.members[:len(c.members):len(c.members)], m)),
			"--initial-cluster-state=existing"},
	)
	spec.IsUp = m.isLearner
	m.server, err = testserver.Start(spec)
	return m, err
}

// isLearner reports whether a member that was started knows that it is a learner.
func (m *Member) isLearner(addr string, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	client, err := m.cluster.newClient([]string{addr})
	if err != nil {
		return err
	}
	defer client.Close()
	status, err := client.Status(ctx, addr)
	if err == nil && !status.IsLearner {
		err = errors.New("it is no learner")
	}
	return err
}
