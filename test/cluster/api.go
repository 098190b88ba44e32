package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// api is the API server as its administrator sees it. It is for what a start of kubectl, a tenth of a second
// of one processor, would falsify or slow down.
type api struct {
	http *http.Client
	base string
}

func (o *options) api() (*api, error) {
	pair, err := tls.LoadX509KeyPair(o.pki("admin.crt"), o.pki("admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(o.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	t := o.transport()
	t.TLSClientConfig = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}
	return &api{http: &http.Client{Transport: t}, base: o.server()}, nil
}

// transport connects from the control plane's network, which reaches nodes and pods.
func (o *options) transport() *http.Transport {
	return &http.Transport{MaxIdleConnsPerHost: 32, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = within(o.nsName(control), func() error {
			conn, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
}

// apply is the method of a server-side apply, which HTTP sends as another kind of PATCH.
const apply = "APPLY"

// call sends one request, with body as JSON unless it is nil, and returns what the server answers.
func (a *api) call(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(data)
	}
	kind := "application/json"
	switch method {
	case http.MethodPatch:
		kind = "application/merge-patch+json"
	case apply:
		method, kind = http.MethodPatch, "application/apply-patch+yaml" // which JSON is
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, in)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	resp, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // the status says what matters
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	return resp.Body, nil
}

// do is call for an answer of one object, which goes into `into` unless that is nil.
func (a *api) do(ctx context.Context, method, path string, body, into any) error {
	out, err := a.call(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer out.Close()
	if into == nil {
		_, err = io.Copy(io.Discard, out)
		return err
	}
	return json.NewDecoder(out).Decode(into)
}

func (a *api) get(ctx context.Context, path string, into any) error {
	return a.do(ctx, http.MethodGet, path, nil, into)
}

func (a *api) delete(ctx context.Context, path string) error {
	return a.do(ctx, http.MethodDelete, path, nil, nil)
}

// watch calls fn with every event of a path that has watch=1 in its query, until fn says that it is done or
// ctx ends.
func watch[T any](ctx context.Context, a *api, path string, fn func(kind string, object T) (done bool)) error {
	out, err := a.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer out.Close()
	for dec := json.NewDecoder(out); ; {
		var event struct {
			Type   string
			Object T
		}
		if err := dec.Decode(&event); err != nil {
			return errors.Join(fmt.Errorf("watch %s: %w", path, err), context.Cause(ctx))
		}
		if fn(event.Type, event.Object) {
			return nil
		}
	}
}

// pod is as much of a Pod as is asked for here.
type pod struct {
	Metadata struct {
		Namespace, Name, UID string
		DeletionTimestamp    *time.Time
	}
	Spec struct {
		NodeName    string
		HostNetwork bool
	}
	Status struct {
		Phase      string
		PodIPs     []struct{ IP string }
		Conditions []condition
	}
}

type condition struct{ Type, Status, Reason string }

// is tells whether a condition holds.
func is(conditions []condition, kind string) bool {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status == "True"
		}
	}
	return false
}

func (p *pod) ready() bool {
	return p.Metadata.DeletionTimestamp == nil && is(p.Status.Conditions, "Ready")
}

func (p *pod) path() string {
	return "/api/v1/namespaces/" + p.Metadata.Namespace + "/pods/" + p.Metadata.Name
}

// pods lists a namespace's pods ("" = all) with a label selector.
func (a *api) pods(ctx context.Context, namespace, selector string) ([]pod, error) {
	path := "/api/v1/pods"
	if namespace != "" {
		path = "/api/v1/namespaces/" + namespace + "/pods"
	}
	var list struct{ Items []pod }
	err := a.get(ctx, path+"?labelSelector="+strings.ReplaceAll(selector, "=", "%3D"), &list)
	return list.Items, err
}

// awaitPods waits until a namespace has exactly n pods of a label, all of them Ready and none of them among
// those in not.
func (a *api) awaitPods(ctx context.Context, namespace, selector string, n int, not ...pod) (list []pod, err error) {
	err = await(ctx, fmt.Sprintf("%d Ready pods %s", n, selector), 3*time.Minute, func() error {
		if list, err = a.pods(ctx, namespace, selector); err != nil {
			return err
		}
		ready := 0
		for _, p := range list {
			for _, old := range not {
				if p.Metadata.UID == old.Metadata.UID {
					return fmt.Errorf("%s is still there", p.Metadata.Name)
				}
			}
			if p.ready() {
				ready++
			}
		}
		if ready != n || len(list) != n {
			return fmt.Errorf("%d of %d are", ready, len(list))
		}
		return nil
	})
	return list, err
}
