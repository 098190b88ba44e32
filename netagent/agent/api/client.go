// Package api sends single requests to the API server, for what an agent writes there.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"

	"github.com/braidnet/braid/internal/source/kube"
)

// Client sends single requests to the API server, of the few kinds that an agent writes. It is for one
// goroutine.
type Client struct {
	Kubeconfig, Context string // where the server is; a Kubeconfig of "" is the service account of the pod

	http *http.Client // made when it is needed
	base *url.URL
}

// Error is an answer of the API server that is no success.
type Error struct {
	Code    int
	Status  string // "409 Conflict"
	Message string
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("the API server answers %s: %s", e.Status, e.Message)
}

// Ask sends one request and returns the answer; an error may be an *Error.
func (c *Client) Ask(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	if c.http == nil {
		cfg, err := kube.Config(c.Kubeconfig, c.Context)
		if err != nil {
			return nil, err
		}
		if c.base, _, err = rest.DefaultServerUrlFor(cfg); err != nil {
			return nil, err
		}
		if c.http, err = rest.HTTPClientFor(cfg); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, &Error{resp.StatusCode, resp.Status, message(text)}
	}
	return text, nil
}

// message returns the text of a Status object, or all of it when it is none.
func message(body []byte) string {
	var s struct{ Message string }
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		return s.Message
	}
	return string(bytes.TrimSpace(body))
}
