package lab

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// outsideZone is the only zone the outside resolver knows; every other name does not exist.
const outsideZone = "outside.example."

const outsideTTL = 60

// outside plays the world beyond the cluster, in the underlay's namespace: an HTTP server that
// answers with the client's address, and a resolver.
type outside struct {
	closers []io.Closer
	log     *slog.Logger
}

// closer makes a clean-up of a function.
type closer func() error

func (c closer) Close() error { return c() }

func serveOutside(netns string, fams []family, log *slog.Logger) (o *outside, err error) {
	o = &outside{log: log}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	var addrs []netip.Addr
	for _, f := range fams {
		addrs = append(addrs, f.outside)
	}
	for _, a := range addrs {
		if err := o.http(netns, netip.AddrPortFrom(a, 80)); err != nil {
			return nil, fmt.Errorf("outside HTTP server: %w", err)
		}
		if err := o.dns(netns, netip.AddrPortFrom(a, 53), resolver(addrs)); err != nil {
			return nil, fmt.Errorf("outside resolver: %w", err)
		}
	}
	return o, nil
}

// Close ends every server.
func (o *outside) Close() error {
	var errs []error
	for _, c := range o.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (o *outside) http(netns string, at netip.AddrPort) error {
	l, err := listenNS(netns, "tcp", at.String())
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(outsideHTTP), ReadHeaderTimeout: 5 * time.Second}
	o.closers = append(o.closers, s)
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			o.log.Error("outside HTTP server ended", "addr", at, "err", err)
		}
	}()
	return nil
}

// outsideHTTP answers with three lines: who answers, at which address, and whom it sees.
func outsideHTTP(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintf(w, "name: outside\naddress: %s\nclient: %s\n", local, r.RemoteAddr)
}

func (o *outside) dns(netns string, at netip.AddrPort, h dns.Handler) error {
	pc, err := listenPacketNS(netns, "udp", at.String())
	if err != nil {
		return err
	}
	l, err := listenNS(netns, "tcp", at.String())
	if err != nil {
		pc.Close()
		return err
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		select {
		case <-started:
			o.closers = append(o.closers, closer(s.Shutdown))
		case err := <-ended:
			return err
		}
	}
	return nil
}

// resolver answers the outside zone with addrs, and that every other name does not exist.
func resolver(addrs []netip.Addr) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(outsideAnswer(q, addrs)) // the client has gone: nobody to tell
	})
}

// outsideAnswer answers one query. Negative answers carry the SOA which RFC 2308 asks for, so
// that caches keep them.
func outsideAnswer(q *dns.Msg, addrs []netip.Addr) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	soa := &dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: outsideTTL},
		Ns:  outsideZone, Mbox: "hostmaster." + outsideZone, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: outsideTTL,
	}
	if strings.EqualFold(name, outsideZone) {
		soa.Hdr.Name = outsideZone
		for _, a := range addrs {
			hdr := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: outsideTTL}
			switch {
			case a.Is4() && qtype == dns.TypeA:
				hdr.Rrtype = dns.TypeA
				m.Answer = append(m.Answer, &dns.A{Hdr: hdr, A: a.AsSlice()})
			case a.Is6() && qtype == dns.TypeAAAA:
				hdr.Rrtype = dns.TypeAAAA
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
			}
		}
	} else {
		m.Rcode = dns.RcodeNameError
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{soa}
	}
	return m
}
