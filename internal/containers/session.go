package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// label is that of all containers. It says which socket they were ordered through: when nobody listens there any more,
// nobody needs them.
const label = "locker.test.socket"

// removePatience bounds the removal of containers.
const removePatience = 30 * time.Second

// docker is what there is to do with Docker.
type docker struct {
	provider *testcontainers.DockerProvider
	client   *testcontainers.DockerClient

	// starting has room for those containers that may be started at the same time. To start one takes as much of the
	// processor as hundreds of requests to what is in it: tests that wait for answers must not be kept waiting by
	// others that begin.
	starting chan struct{}
}

func newDocker(ctx context.Context) (*docker, error) {
	log.SetDefault(log.NewNoopLogger()) // it would tell of each container
	// Its own way to have containers removed needs another image, and ends them later than this does.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		return nil, err
	}
	// The containers have no network but the host's, and Docker may have no other.
	provider, err := testcontainers.NewDockerProvider(testcontainers.WithDefaultBridgeNetwork("host"))
	if err != nil {
		return nil, err
	}
	if err := provider.Health(ctx); err != nil {
		return nil, fmt.Errorf("Docker does not answer: %w", err) //nolint:staticcheck // a name
	}
	c, err := testcontainers.NewDockerClientWithOpts(ctx)
	return &docker{provider, c, make(chan struct{}, max(1, runtime.NumCPU()/2))}, err
}

// remove removes all containers whose socket meets a condition.
func (d *docker) remove(wanted func(socket string) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	list, err := d.client.ContainerList(ctx,
		client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", label)})
	if err != nil {
		return err
	}
	errs := make([]error, len(list.Items))
	var wg sync.WaitGroup
	for i, c := range list.Items {
		if wanted(c.Labels[label]) {
			wg.Go(func() { errs[i] = d.removeOne(ctx, c.ID) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *docker) removeOne(ctx context.Context, id string) error {
	_, err := d.client.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if isGone(err) { // or going
		return nil
	}
	return err
}

// deserted reports whether nobody listens on a socket.
func deserted(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return true
	}
	_ = conn.Close()
	return false
}
