package names

import (
	"time"

	"github.com/braidnet/braid/internal/model"
)

// ZoneClass is a sort of zone that is made from the index; each has a serial of its own.
type ZoneClass uint8

// Classes of zones.
const (
	ClusterZone  ZoneClass = iota // services, endpoints and pods of the cluster
	ExternalZone                  // external addresses of services
	SetZone                       // services of a set of clusters
)

// serial is the serial of a zone's SOA: the Unix time of the last change that could alter an answer,
// 0 before the first.
type serial struct {
	value  uint32
	handed bool // somebody may keep a copy of the zone under this value
}

// advance marks a change. A serial never goes back, even when the clock does, and a second change in
// one second gets a serial of its own when the first was handed out: who copied the zone in between
// would else never learn of it.
func (s *serial) advance(now time.Time) {
	next := max(s.value, uint32(now.Unix()))
	if next == s.value && s.handed {
		next++
	}
	s.value, s.handed = next, false
}

// Serial returns the serial of the zones of a class.
func (x *Index) Serial(z ZoneClass) uint32 { return x.published[z].Load() }

// HandOut returns the serial for somebody who may copy the zone: the next change will have another.
func (x *Index) HandOut(z ZoneClass) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.serials[z].handed = true
	return x.serials[z].value
}

// outside reports whether a service can have names in zones of external addresses: those of headless
// services are served there on demand.
func outside(s *model.Service) bool {
	return s != nil && (s.Headless || len(s.ExternalIPs) > 0 || len(s.Ingress) > 0)
}
