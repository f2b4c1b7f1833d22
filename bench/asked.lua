-- wrk: POST one body again and again, with a number that goes round in it. Arguments: API key, body with a %d, how many.
local number, most, body, headers = 0, 1, "", {}

function init(arguments)
  headers = {["content-type"] = "application/json", ["authorization"] = "Bearer " .. arguments[1]}
  body, most = arguments[2], tonumber(arguments[3])
end

function request()
  number = number % most + 1
  return wrk.format("POST", nil, headers, string.format(body, number))
end
