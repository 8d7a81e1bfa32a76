package modes

import (
	"context"
	"hash/fnv"
	"sync"

	"github.com/lockerkit/locker"
)

// Crawl fetches pages of a site until ctx ends. Each crawler has one part of the site for itself: that of its slot.
// Run more of them than there are parts: the others wait, and one of them goes on where a crawler has died. With fewer,
// some part has nobody. fetch returns the links of a page; its ctx ends if the slot is lost, and with it the page.
func Crawl(
	ctx context.Context, l locker.Locker, site *Site, fetch func(ctx context.Context, page string) (links []string),
) error {
	return locker.Lead(ctx, l, "crawler", func(ctx context.Context, lease *locker.Lease) error {
		part, token := lease.Slot(), lease.Token()
		for {
			page, err := site.Next(ctx, part, token)
			if err != nil {
				return err // Lead tries again if the slot is lost
			}
			links := fetch(ctx, page)
			if ctx.Err() != nil { // the page may not be complete
				return context.Cause(ctx)
			}
			if err := site.Done(part, token, page, links); err != nil {
				return err
			}
		}
	}, locker.Slots(len(site.parts)))
}

// Site knows the pages that there are, and which of them have been fetched. Each part has a fence of its own: the holder
// of another slot may have a greater token.
type Site struct {
	mu    sync.Mutex
	known map[string]bool
	parts []part
	more  chan struct{} // closed when there are more pages
}

type part struct {
	fence uint64
	todo  []string
}

// NewSite returns a site in so many parts, of which some pages are known.
func NewSite(parts int, pages ...string) *Site {
	s := &Site{known: make(map[string]bool), parts: make([]part, parts), more: make(chan struct{})}
	s.add(pages)
	return s
}

// partOf is the part that a page belongs to.
func (s *Site) partOf(page string) *part {
	h := fnv.New32a()
	h.Write([]byte(page))
	return &s.parts[h.Sum32()%uint32(len(s.parts))]
}

// add has pages fetched that are not known yet. It takes no token: to add a page again changes nothing.
func (s *Site) add(pages []string) {
	for _, page := range pages {
		if !s.known[page] {
			s.known[page] = true
			p := s.partOf(page)
			p.todo = append(p.todo, page)
		}
	}
	close(s.more)
	s.more = make(chan struct{})
}

// enter shuts the part to those who had its slot before.
func (p *part) enter(token uint64) error {
	if token < p.fence {
		return ErrStale
	}
	p.fence = token
	return nil
}

// Next waits until there is a page to be fetched in a part. It returns the same one until that is done.
func (s *Site) Next(ctx context.Context, part int, token uint64) (page string, err error) {
	for {
		s.mu.Lock()
		p, more := &s.parts[part], s.more
		if err = p.enter(token); err == nil && len(p.todo) > 0 {
			page = p.todo[0]
		}
		s.mu.Unlock()
		if err != nil || page != "" {
			return page, err
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-more:
		}
	}
}

// Done says that the page which was next has been fetched, and what links it has. To say it again does no harm.
func (s *Site) Done(part int, token uint64, page string, links []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.parts[part]
	if err := p.enter(token); err != nil {
		return err
	}
	if len(p.todo) > 0 && p.todo[0] == page {
		p.todo = p.todo[1:]
	}
	s.add(links)
	return nil
}
