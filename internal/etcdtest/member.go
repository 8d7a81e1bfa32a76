package etcdtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker/internal/portkeep"
	"github.com/lockerkit/locker/internal/testserver"
)

// Member is one server of a Cluster. Those of its methods that change its
// state run one after the other.
type Member struct {
	cluster *Cluster
	name    string
	peer    *portkeep.Port // where it listens to the others
	server  *testserver.Server
}

func (m *Member) peerURL() string { return "http://" + m.peer.Addr() }

// Addr returns the member's address for clients as host:port. It stays the
// same for the cluster's whole life.
func (m *Member) Addr() string { return m.server.Addr() }

// URL returns the member's address as http://host:port, or https:// with TLS.
func (m *Member) URL() string { return m.cluster.url(m.Addr()) }

// Kill ends the member with SIGKILL and waits until it is gone. Connections to
// its address are refused from then on. Kill does nothing if the member is not
// running.
func (m *Member) Kill() {
	m.cluster.setUp(m, false)
	m.server.Kill()
}

// Stop ends the member in order (SIGTERM), so that a leader has another one
// take over, and waits until it is gone. It does nothing if the member is not
// running.
func (m *Member) Stop() error {
	m.cluster.setUp(m, false)
	return m.server.Stop(syscall.SIGTERM)
}

// Pause stops the member with SIGSTOP and waits until it has really stopped.
// The kernel still accepts connections and bytes on its behalf. Pause does
// nothing if the member is paused already.
func (m *Member) Pause() error {
	m.cluster.setUp(m, false)
	return m.server.Pause()
}

// Resume lets a paused member go on. It does not wait until the others have it
// back; see Cluster.AwaitHealthy.
func (m *Member) Resume() error {
	err := m.server.Resume()
	if err == nil {
		m.cluster.setUp(m, true)
	}
	return err
}

// Restart starts the member again, on the same ports and with the same data.
// If it is still running, it is killed before. Restart waits until the member
// takes part in the cluster, or, as long as there is no majority of members
// that run, until it accepts connections.
func (m *Member) Restart() error {
	m.cluster.setUp(m, true)
	err := m.server.Restart()
	if err != nil {
		m.cluster.setUp(m, false)
	}
	return err
}

// LogTail returns the end of what the member has logged so far.
func (m *Member) LogTail() string { return m.server.LogTail() }

// isUp reports whether a member that was started is where Restart waits for.
func (m *Member) isUp(addr string, deadline time.Time) error {
	dialer := net.Dialer{Deadline: deadline}
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return err
	}
	conn.Close()
	if !m.cluster.isMajority(len(m.cluster.running())) {
		return nil
	}
	return m.ready(addr, deadline)
}

// ready asks the member whether it takes part in the cluster, for which it
// does a linearizable read. That asks for no permissions, unlike others.
func (m *Member) ready(addr string, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.cluster.url(addr)+"/readyz", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: m.cluster.TLS(), DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", req.URL, resp.Status, text)
	}
	return err
}

// status asks the member about its part in the cluster.
func (m *Member) status(deadline time.Time) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	client, err := m.cluster.newClient([]string{m.Addr()})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Status(ctx, m.Addr())
}
